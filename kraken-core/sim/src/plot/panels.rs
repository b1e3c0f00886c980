//! Three panels below each other: times, what the agents sent, what the origins sent.

use plotters::coord::Shift;
use plotters::prelude::{
    ChartBuilder, DashedLineSeries, DrawingArea, DrawingAreaErrorKind, DrawingBackend,
    IntoFont as _, LineSeries, PathElement, SeriesLabelPosition, WHITE,
};
use plotters::style::{Color as _, RGBColor, ShapeStyle};

use super::curves::{Rates, distributions};
use crate::plan::Plan;
use crate::report::Report;

type Area<DB> = DrawingArea<DB, Shift>;
type Drawn<DB> = Result<(), DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>>;

/// Colours that people tell apart however they see them.
const COLOURS: [RGBColor; 3] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
];
const GREY: RGBColor = RGBColor(110, 110, 110);
const FAINT: RGBColor = RGBColor(225, 225, 225);

const FONT: &str = "sans-serif";
const TITLE: u32 = 26;
const CAPTION: u32 = 20;
const LABEL: u32 = 16;

/// Draws everything.
pub(super) fn draw<DB: DrawingBackend>(area: &Area<DB>, plan: &Plan, report: &Report) -> Drawn<DB> {
    area.fill(&WHITE)?;
    let title = format!(
        "{}: {} hosts, floor {:.3} s, seed {}",
        report.plan, report.hosts, report.floor_seconds, plan.seed
    );
    let area = area.margin(12, 0, 0, 12).titled(&title, (FONT, TITLE))?;
    let (times, rates) = area.split_vertically(500);
    let (agents, origins) = rates.split_vertically(330);
    self::times(&times, report)?;
    let of_agents = Rates::of_agents(plan, report);
    let names = ["sent", "cap of all that have started"];
    self::rates(&agents, "Sent by agents, in GB/s", &of_agents, names)?;
    let of_origins = Rates::of_origins(plan, report);
    let names = ["sent", "cap of all that are alive"];
    self::rates(&origins, "Sent by origins, in GB/s", &of_origins, names)?;
    area.present()
}

/// How many hosts took how long.
fn times<DB: DrawingBackend>(area: &Area<DB>, report: &Report) -> Drawn<DB> {
    let curves = distributions(report);
    let ends = |pick: fn(f64, f64) -> f64| {
        let points = curves.iter().flat_map(|(_, curve)| curve);
        points.map(|(ratio, _)| *ratio).reduce(pick)
    };
    let (least, most) = (ends(f64::min).unwrap_or(1.0), ends(f64::max).unwrap_or(2.0));
    let least = least.min(1.0);
    let most = most.max(least + 0.01);
    let unfinished = match report.unfinished {
        0 => String::new(),
        unfinished => format!("; {unfinished} NOT DONE"),
    };
    let caption = format!("Hosts by the time they took, over the floor{unfinished}");
    let mut chart = builder(area, &caption)
        .build_cartesian_2d(least..most + (most - least) * 0.03, 0.0..103.0)?;
    chart
        .configure_mesh()
        .label_style((FONT, LABEL))
        .axis_style(GREY)
        .bold_line_style(FAINT)
        .light_line_style(WHITE)
        .x_desc("time / floor")
        .y_desc("hosts, %")
        .x_label_formatter(&|ratio| format!("{ratio:.2}"))
        .y_label_formatter(&|share| format!("{share:.0}"))
        .draw()?;
    for ((name, curve), colour) in curves.into_iter().zip(COLOURS) {
        let style = colour.stroke_width(2);
        chart
            .draw_series(LineSeries::new(curve, style))?
            .label(name)
            .legend(move |at| sample(at, style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .label_font((FONT, LABEL))
        .background_style(WHITE.mix(0.8))
        .border_style(FAINT)
        .margin(12)
        .draw()?;
    Ok(())
}

/// What was sent over time, below what could have been.
fn rates<DB: DrawingBackend>(
    area: &Area<DB>,
    caption: &str,
    rates: &Rates,
    [sent, cap]: [&str; 2],
) -> Drawn<DB> {
    let last = rates.sent.last().map_or(1.0, |(at, _)| *at);
    let most = rates.most().max(1e-3) * 1.08;
    let mut chart = builder(area, caption).build_cartesian_2d(0.0..last, 0.0..most)?;
    let digits = if most < 10.0 { 1 } else { 0 };
    chart
        .configure_mesh()
        .label_style((FONT, LABEL))
        .axis_style(GREY)
        .bold_line_style(FAINT)
        .light_line_style(WHITE)
        .y_labels(5)
        .x_desc("seconds")
        .x_label_formatter(&|at| format!("{at:.1}"))
        .y_label_formatter(&|rate| format!("{rate:.digits$}"))
        .draw()?;
    let style = COLOURS[0].stroke_width(2);
    chart
        .draw_series(LineSeries::new(rates.sent.iter().copied(), style))?
        .label(sent)
        .legend(move |at| sample(at, style));
    let style = GREY.stroke_width(2);
    chart
        .draw_series(DashedLineSeries::new(
            rates.cap.iter().copied(),
            6,
            5,
            style,
        ))?
        .label(cap)
        .legend(move |at| sample(at, style));
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::MiddleRight)
        .label_font((FONT, LABEL))
        .background_style(WHITE.mix(0.8))
        .border_style(FAINT)
        .margin(12)
        .draw()?;
    Ok(())
}

fn builder<'a, 'b, DB: DrawingBackend>(
    area: &'a Area<DB>,
    caption: &str,
) -> ChartBuilder<'a, 'b, DB> {
    let mut builder = ChartBuilder::on(area);
    builder
        .caption(caption, (FONT, CAPTION).into_font())
        .margin(14)
        .x_label_area_size(46)
        .y_label_area_size(78);
    builder
}

/// What a line looks like, beside its name.
fn sample((x, y): (i32, i32), style: ShapeStyle) -> PathElement<(i32, i32)> {
    PathElement::new(vec![(x, y), (x + 20, y)], style)
}
