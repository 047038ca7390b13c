//! The samples as a picture: memory and descriptors over time, on a scale for each.

use crate::samples::{Sample, Samples};
use plotters::prelude::*;
use std::error::Error;
use std::path::Path;

const SIZE: (u32, u32) = (1000, 700);
/// What can be told apart in grey and by those who see few colours.
const BLUE: RGBColor = RGBColor(0, 114, 178);
const ORANGE: RGBColor = RGBColor(230, 159, 0);

struct Line {
    name: &'static str,
    colour: RGBColor,
    value: fn(&Sample) -> f64,
}

const MEMORY: [Line; 2] = [
    Line { name: "RSS", colour: BLUE, value: |sample| sample.rss_kib as f64 / 1024.0 },
    Line {
        name: "of that heap and stacks",
        colour: ORANGE,
        value: |sample| sample.anonymous_kib as f64 / 1024.0,
    },
];
const DESCRIPTORS: [Line; 2] = [
    Line { name: "descriptors", colour: BLUE, value: |sample| sample.descriptors as f64 },
    Line {
        name: "open files of clients",
        colour: ORANGE,
        value: |sample| sample.held.processes as f64,
    },
];

pub fn draw(path: &Path, samples: &Samples) -> Result<(), Box<dyn Error>> {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let halves = area.split_evenly((2, 1));
    panel(&halves[0], "Memory of the daemon, MiB", &samples.0, &MEMORY)?;
    panel(&halves[1], "Descriptors of the daemon", &samples.0, &DESCRIPTORS)?;
    area.present()?;
    Ok(())
}

fn panel<B: DrawingBackend>(
    area: &DrawingArea<B, plotters::coord::Shift>,
    title: &str,
    samples: &[Sample],
    lines: &[Line],
) -> Result<(), Box<dyn Error>>
where
    B::ErrorType: 'static,
{
    let last = samples.last().map_or(1.0, |sample| sample.seconds);
    let values = samples.iter().flat_map(|sample| lines.iter().map(|line| (line.value)(sample)));
    let most = values.fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(36)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..last, 0.0..most * 1.1)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("seconds since the load began")
        .x_label_formatter(&|seconds| format!("{seconds:.0}"))
        .y_label_formatter(&|value| format!("{value:.0}"))
        .draw()?;
    for line in lines {
        let points = samples.iter().map(|sample| (sample.seconds, (line.value)(sample)));
        let colour = line.colour;
        chart
            .draw_series(LineSeries::new(points, colour))?
            .label(line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()?;
    Ok(())
}
