//! A strict reader of the text format of OpenMetrics, as far as processes use it.

use std::collections::BTreeMap;

/// What the text is to be told as.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A family that a text declares.
#[derive(Debug, Default)]
struct Family {
    kind: Option<String>,
    has_help: bool,
    samples: Vec<String>,
}

/// The names of a text's samples, but for the parts of histograms, with their types.
///
/// # Errors
/// The first line that is not as OpenMetrics asks, and why.
pub(crate) fn read(text: &str) -> Result<BTreeMap<String, String>, String> {
    let body = text.strip_suffix("# EOF\n").ok_or("no EOF at the end")?;
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    for line in body.lines() {
        let wrong = |why: &str| format!("{why}: {line}");
        match line.strip_prefix("# ") {
            Some(told) => declare(told, &mut families, &mut current).map_err(|it| wrong(&it))?,
            None => {
                let family = families.get_mut(&current);
                let family = family.ok_or_else(|| wrong("no family is declared"))?;
                sample(line, &current, family).map_err(|it| wrong(&it))?;
            }
        }
    }
    let mut names = BTreeMap::new();
    for (name, family) in families {
        let kind = family.kind.ok_or_else(|| format!("{name} has no type"))?;
        if !family.has_help {
            return Err(format!("{name} has no help"));
        }
        let ending = if kind == "counter" { "_total" } else { "" };
        names.insert(format!("{name}{ending}"), kind);
    }
    Ok(names)
}

/// `HELP name text` and its like.
fn declare(
    told: &str,
    families: &mut BTreeMap<String, Family>,
    current: &mut String,
) -> Result<(), String> {
    let mut words = told.splitn(3, ' ');
    let (Some(what), Some(name), Some(value)) = (words.next(), words.next(), words.next()) else {
        return Err("a comment".into());
    };
    if name != current {
        if families.contains_key(name) {
            return Err("a family comes twice".into());
        }
        *current = name.to_owned();
    }
    let family = families.entry(name.to_owned()).or_default();
    if !family.samples.is_empty() {
        return Err("it comes after samples of its family".into());
    }
    let is_new = match what {
        "HELP" => !std::mem::replace(&mut family.has_help, true),
        "TYPE" if ["counter", "gauge", "histogram"].contains(&value) => {
            family.kind.replace(value.to_owned()).is_none()
        }
        "UNIT" => name.ends_with(&format!("_{value}")),
        _ => return Err("a comment".into()),
    };
    if name.ends_with("_total") {
        return Err("a family's name is without _total".into());
    }
    is_new
        .then_some(())
        .ok_or_else(|| "it is there twice".into())
}

/// `name{label="value"} 3`.
fn sample(line: &str, name: &str, family: &mut Family) -> Result<(), String> {
    let (series, value) = line.rsplit_once(' ').ok_or("no value")?;
    let value: f64 = value.parse().map_err(|_| "its value is no number")?;
    let (sample, labels) = series.split_once('{').unwrap_or((series, "}"));
    let pair = r#"[a-z_]+="([^"\\\n]|\\["\\n])*""#;
    let labels_are = regex::Regex::new(&format!("^({pair}(,{pair})*)?}}$")).unwrap();
    if !labels_are.is_match(labels) {
        return Err("its labels are none".into());
    }
    let endings: &[&str] = match family.kind.as_deref() {
        Some("counter") => &["_total"],
        Some("histogram") => &["_bucket", "_sum", "_count"],
        Some(_) => &[""],
        None => return Err("its family has no type".into()),
    };
    if !endings.iter().any(|it| sample == format!("{name}{it}")) {
        return Err(format!("it is not of the family {name}"));
    }
    if endings != [""] && value < 0.0 {
        return Err("it counts below 0".into());
    }
    if family.samples.iter().any(|it| it == series) {
        return Err("it is there twice".into());
    }
    family.samples.push(series.to_owned());
    Ok(())
}

#[test]
fn what_openmetrics_forbids_is_found() {
    let help = "# HELP a A.\n";
    let text = format!("{help}# TYPE a counter\na_total{{b=\"c\\\"d\"}} 1\na_total 2\n# EOF\n");
    let names = read(&text).unwrap();
    assert_eq!(names["a_total"], "counter");
    for (text, why) in [
        ("# TYPE a gauge\na 1\n# EOF\n", "no help"),
        ("# HELP a A.\n# EOF\n", "no type"),
        ("# HELP a A.\n# TYPE a gauge\na 1\n", "EOF"),
        (
            "# HELP a A.\n# TYPE a gauge\n# EOF\na 1\n# EOF\n",
            "comment",
        ),
        ("a 1\n# EOF\n", "no family"),
        ("# HELP a A.\n# TYPE a counter\na 1\n# EOF\n", "not of"),
        (
            "# HELP a_total A.\n# TYPE a_total counter\n# EOF\n",
            "without",
        ),
        ("# HELP a A.\n# TYPE a gauge\nb 1\n# EOF\n", "not of"),
        ("# HELP a A.\n# TYPE a gauge\na 1\na 1\n# EOF\n", "twice"),
        ("# HELP a A.\n# TYPE a gauge\na{b=c} 1\n# EOF\n", "labels"),
        ("# HELP a A.\n# TYPE a gauge\na x\n# EOF\n", "number"),
        (
            "# HELP a A.\n# TYPE a gauge\n# HELP b B.\n# TYPE b gauge\na 1\n# EOF\n",
            "not of",
        ),
        (
            "# HELP a A.\n# TYPE a gauge\n# HELP b B.\n# TYPE b gauge\n# HELP a A.\n# EOF\n",
            "twice",
        ),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.contains(why), "{text}: {error}");
    }
}
