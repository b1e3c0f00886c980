//! Artifacts and what refers to them, by the ORAS client for Python.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::lab::Lab;
use crate::{layout, namespace};

/// Where `.ci/run` installs clients for Python.
pub(crate) const PYTHON: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../target/clients/bin/python"
);
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/oras.py");
const REPOSITORY: &str = "team/artifacts";
const SBOM: &str = "application/x.sbom";

pub(crate) fn artifacts(lab: &Lab) {
    // Set by `.ci/run` where PyPI does not answer.
    if std::env::var_os("KRAKEN_WITHOUT_PYPI").is_some() {
        namespace::say("SKIPPED: artifacts by ORAS, which PyPI does not give");
        return;
    }
    if namespace::lacks("ORAS", &[PYTHON]) {
        return;
    }
    let oras = |words: &str| -> Value {
        let said = lab.ok(&format!("{PYTHON} {SCRIPT} {words}"));
        serde_json::from_str(said.trim()).unwrap_or_else(|error| panic!("{words}: {error}: {said}"))
    };
    let proxy = lab.proxy();
    let file = |name: &str, text: String| {
        fs::write(lab.path(name), text).unwrap();
        lab.path(name)
    };
    let model = file("model.bin", "weights ".repeat(100_000));
    let sbom = file("sbom.json", "{\"packages\": []}".into());
    let config = file("config.json", "{}".into());

    let target = format!("{proxy}/{REPOSITORY}");
    let words =
        format!("push {target}:v1 {model}:application/x.model {config}:application/x.config");
    let pushed = oras(&words);
    let artifact = pushed["Docker-Content-Digest"].as_str().unwrap().to_owned();
    assert_eq!(pushed["OCI-Subject"], Value::Null);
    let size = lab.skopeo_raw(&format!("{target}:v1")).len();
    let words = format!("push {target}:sbom {sbom}:{SBOM} {config}:{SBOM} {artifact} {size}");
    let pushed = oras(&words);
    let referrer = pushed["Docker-Content-Digest"].as_str().unwrap().to_owned();
    assert_eq!(pushed["OCI-Subject"], json!(artifact));

    for registry in [proxy, lab.agent(1), lab.agent(2)] {
        let place = format!("{registry}/{REPOSITORY}");
        let listed = oras(&format!("referrers {place} {artifact} {SBOM}"));
        assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
        assert_eq!(listed[0]["digest"], json!(referrer));
        assert_eq!(listed[0]["artifactType"], json!(SBOM));
        let others = oras(&format!("referrers {place} {artifact} application/x.other"));
        assert_eq!(others, json!([]));
        let dir = lab.path(&format!("oras-{}", registry.replace(':', "-")));
        for (tag, from) in [("v1", &model), ("sbom", &sbom)] {
            let files = oras(&format!("pull {place}:{tag} {dir}"));
            let name = Path::new(from).file_name().unwrap().to_str().unwrap();
            assert_eq!(files, json!([format!("{dir}/{name}")]));
            let pulled = layout::sha256(&fs::read(format!("{dir}/{name}")).unwrap());
            assert_eq!(pulled, layout::sha256(&fs::read(from).unwrap()));
        }
    }
    assert_eq!(oras(&format!("delete {target} sbom")), json!(true));
    for registry in [lab.proxy(), lab.agent(1)] {
        let place = format!("{registry}/{REPOSITORY}");
        assert_eq!(oras(&format!("referrers {place} {artifact}")), json!([]));
        oras(&format!("pull {place}:v1 {}", lab.path("oras-after")));
    }
    // A second time there is nothing to delete.
    assert_eq!(oras(&format!("delete {target} sbom")), json!(false));
    let errors = lab.fails(&format!(
        "{PYTHON} {SCRIPT} delete {}/{REPOSITORY} v1",
        lab.agent(1)
    ));
    assert!(errors.contains("Delete was not successful"), "{errors}");
}
