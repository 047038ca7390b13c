//! The report as a picture: a group of bars for each row, a bar for each column.

use super::report::{Report, number};
use super::series::{Measured, Spread};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::error::Error;
use std::path::Path;

const WIDTH: i32 = 1000;
const NAMES: i32 = 330;
const BAR: i32 = 14;
const GAP: i32 = 8;
const HEAD: i32 = 44;

/// Of the columns: what can be told apart in grey and by those who see few colours.
const COLOURS: [RGBColor; 4] =
    [RGBColor(68, 68, 68), RGBColor(230, 159, 0), RGBColor(86, 180, 233), RGBColor(0, 114, 178)];

/// Rows that are drawn on one scale.
struct Panel<'a> {
    title: &'static str,
    measured: &'a Measured,
    rows: Vec<&'a str>,
}

/// Which panel a row is in; `None` for figures that have no others of their kind.
fn panel_of(row: &str, unit: &str) -> Option<usize> {
    let is_of = |ends: &[&str]| ends.iter().any(|end| row.contains(end));
    match unit {
        "us" if is_of(&["page install", "memcpy", "p99.9"]) => None,
        "us" if is_of(&["KiB"]) => Some(2),
        "us" if is_of(&["descriptor"]) => Some(3),
        "us" if row.ends_with("one core") => Some(0),
        "us" => Some(1),
        "calls/s" => Some(4),
        _ => None,
    }
}

const TITLES: [&str; 5] = [
    "everything on one core, us",
    "on any core, us",
    "calls with data, us",
    "calls with descriptors, us",
    "calls a second, all callers together",
];

fn panels(measured: &Measured) -> Vec<Panel<'_>> {
    let unit = |row: &str| {
        let series = measured.series.iter().find(|series| series.row == row);
        series.map_or("", |series| &series.unit)
    };
    let panel = |(index, title)| {
        let rows = measured.rows().into_iter();
        let rows = rows.filter(|row| panel_of(row, unit(row)) == Some(index)).collect();
        Panel { title, measured, rows }
    };
    TITLES.into_iter().enumerate().map(panel).filter(|panel| !panel.rows.is_empty()).collect()
}

/// The bars of a row: the column's number, and its figure.
fn bars(measured: &Measured, row: &str) -> Vec<(usize, Spread)> {
    let series = measured.series.iter().filter(|series| series.row == row);
    let bar = series.filter_map(|series| {
        let column = measured.columns.iter().position(|column| *column == series.column);
        // What has no column is not ours: in the colour of the driver.
        let colour = match (column, measured.against.is_some()) {
            (None, _) => 0,
            (Some(column), true) => column,
            (Some(column), false) => column + 2,
        };
        Some((colour, Spread::of(series.values.iter().copied().flatten())?))
    });
    bar.collect()
}

impl Panel<'_> {
    fn height(&self) -> i32 {
        let rows = self.rows.iter().map(|row| bars(self.measured, row).len() as i32 * BAR + GAP);
        HEAD + rows.sum::<i32>()
    }

    fn draw<B: DrawingBackend>(
        &self,
        area: &DrawingArea<B, plotters::coord::Shift>,
        top: i32,
    ) -> Result<(), Box<dyn Error>>
    where
        B::ErrorType: 'static,
    {
        let font = |size: i32| ("sans-serif", size).into_font();
        area.draw(&Text::new(self.title, (8, top + 20), font(15)))?;
        let all = self.rows.iter().flat_map(|row| bars(self.measured, row));
        let most = all.map(|(_, spread)| spread.most).fold(0.0, f64::max);
        let place = |value: f64| NAMES + (value / most * f64::from(WIDTH - NAMES - 110)) as i32;
        let mut y = top + HEAD;
        for row in &self.rows {
            let bars = bars(self.measured, row);
            let middle = y + bars.len() as i32 * BAR / 2;
            let right = font(13).color(&BLACK).pos(Pos::new(HPos::Right, VPos::Center));
            area.draw(&Text::new(*row, (NAMES - 8, middle), right))?;
            for (colour, spread) in bars {
                let (end, at) = (place(spread.median), y + BAR / 2 - 1);
                let bar = [(NAMES, y), (end.max(NAMES + 1), y + BAR - 2)];
                area.draw(&Rectangle::new(bar, COLOURS[colour].filled()))?;
                // The least and the most of a round.
                let whisker = vec![(place(spread.least), at), (place(spread.most), at)];
                area.draw(&PathElement::new(whisker, BLACK.stroke_width(1)))?;
                let left = font(11).color(&BLACK).pos(Pos::new(HPos::Left, VPos::Center));
                let text = number(spread.median);
                area.draw(&Text::new(text, (end.max(place(spread.most)) + 5, at), left))?;
                y += BAR;
            }
            y += GAP;
        }
        Ok(())
    }
}

/// Which colour is which column.
fn legend(measured: &Measured) -> Vec<(usize, String)> {
    match measured.against {
        Some(_) => measured.columns.iter().cloned().enumerate().collect(),
        None => {
            let own = measured.columns.iter().cloned().enumerate();
            let own = own.map(|(column, name)| (column + 2, format!("fakebinder, FUSE, {name}")));
            std::iter::once((0, "what it is compared with".to_owned())).chain(own).collect()
        }
    }
}

pub fn draw(path: &Path, report: &Report) -> Result<(), Box<dyn Error>> {
    let parts = [
        ("This machine", report.native.as_ref()),
        ("In the VM, beside the kernel's driver", report.vm.as_ref().ok()),
    ];
    let parts: Vec<_> =
        parts.into_iter().filter_map(|(title, part)| Some((title, part?))).collect();
    let panels = |measured| panels(measured).iter().map(Panel::height).sum::<i32>() + 2 * HEAD;
    let height: i32 = parts.iter().map(|(_, measured)| panels(measured)).sum();
    let area = SVGBackend::new(path, (WIDTH as u32, height.max(1) as u32)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut top = 0;
    for (title, measured) in parts {
        let text = format!("{title}: {}", measured.machine);
        area.draw(&Text::new(text, (8, top + 10), ("sans-serif", 17).into_font()))?;
        let mut x = 8;
        for (colour, name) in legend(measured) {
            let (left, y) = (x, top + HEAD);
            area.draw(&Rectangle::new([(left, y), (left + 12, y + 12)], COLOURS[colour].filled()))?;
            area.draw(&Text::new(name.clone(), (left + 18, y), ("sans-serif", 13).into_font()))?;
            x += 40 + 8 * name.len() as i32;
        }
        top += HEAD + 20;
        for panel in self::panels(measured) {
            panel.draw(&area, top)?;
            top += panel.height();
        }
        top += HEAD - 20;
    }
    area.present()?;
    Ok(())
}
