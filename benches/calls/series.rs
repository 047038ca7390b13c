//! What a run comes to: for each row and column a value of each round, and what it is to its
//! reference in the same round.

use serde::{Deserialize, Serialize};

/// Why there is no figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Trouble {
    /// This machine has not what it takes.
    Skipped(String),
    /// It should have worked.
    Failed(String),
}

/// One row in one column.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Series {
    pub row: String,
    /// Empty where there is but one.
    pub column: String,
    pub unit: String,
    /// The row that it is compared with, in the same column if that has it.
    pub reference: String,
    /// A value a round; none where it was not measured.
    pub values: Vec<Option<f64>>,
    pub trouble: Option<Trouble>,
}

/// A figure that is made of several rows of one round.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Derived {
    pub name: String,
    pub column: String,
    pub unit: String,
    pub values: Vec<f64>,
}

/// The median, the least and the most.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Spread {
    /// `None` of no values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (&least, &most) = (sorted.first()?, sorted.last()?);
        Some(Spread { median: sorted[sorted.len() / 2], least, most })
    }
}

/// All that was measured on one machine, real or virtual.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Measured {
    pub machine: String,
    pub rounds: usize,
    pub calls: u64,
    /// The columns, the first of them first.
    pub columns: Vec<String>,
    /// The column that the others are compared with, where rows are not compared with rows.
    pub against: Option<String>,
    pub series: Vec<Series>,
    pub derived: Vec<Derived>,
}

impl Measured {
    pub fn find(&self, row: &str, column: &str) -> Option<&Series> {
        let of = |column: &str| {
            self.series.iter().find(|series| series.row == row && series.column == column)
        };
        of(column).or_else(|| of(""))
    }

    /// What a row came to in a round.
    pub fn value(&self, row: &str, column: &str, round: usize) -> Option<f64> {
        self.find(row, column)?.values.get(round).copied().flatten()
    }

    /// What a series is compared with: another row, or the same in another column.
    pub fn reference(&self, series: &Series) -> Option<&Series> {
        match &self.against {
            Some(column) if !series.column.is_empty() => self.find(&series.row, column),
            _ => self.find(&series.reference, &series.column),
        }
    }

    /// How many times its reference a series is, round by round.
    pub fn ratios(&self, series: &Series) -> Vec<f64> {
        let Some(reference) = self.reference(series) else { return Vec::new() };
        let pairs = series.values.iter().zip(&reference.values);
        pairs.filter_map(|(value, reference)| Some((*value)? / (*reference)?)).collect()
    }

    /// The names of the rows, in order.
    pub fn rows(&self) -> Vec<&str> {
        let mut rows: Vec<&str> = Vec::new();
        for series in &self.series {
            if !rows.contains(&&*series.row) {
                rows.push(&series.row);
            }
        }
        rows
    }

    /// The series that have no figure, and why.
    pub fn troubles(&self) -> impl Iterator<Item = (&Series, &Trouble)> {
        self.series.iter().filter_map(|series| Some((series, series.trouble.as_ref()?)))
    }
}
