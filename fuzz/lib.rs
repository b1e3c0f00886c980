//! Fuzz targets: see `targets/` and `.ci/fuzz`.
