//! What is printed at the end.

use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;
use serde::Serialize;

use crate::Outcome;
use crate::machine::Machine;
use crate::measure::Measure;

#[derive(Serialize)]
struct Report<'a> {
    machine: Machine,
    measures: &'a [Measure],
}

pub(crate) fn json(measures: &[Measure]) -> Outcome<String> {
    let machine = Machine::look();
    Ok(serde_json::to_string(&Report { machine, measures })?)
}

pub(crate) fn table(measures: &[Measure]) -> String {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header([
        "measure", "unit", "ours", "peer", "ratio", "target", "ok", "note",
    ]);
    let number = |it: Option<f64>| it.map_or_else(|| "-".to_string(), |it| format!("{it:.3}"));
    for measure in measures {
        let ok = measure.ok.map_or("-", |ok| if ok { "yes" } else { "NO" });
        table.add_row([
            measure.name.clone(),
            measure.unit.to_string(),
            number(measure.ours),
            number(measure.peer),
            number(measure.ratio),
            format!("<= {}", measure.target),
            ok.to_string(),
            measure.note.clone().unwrap_or_default(),
        ]);
    }
    format!("{}\n{table}", Machine::look())
}
