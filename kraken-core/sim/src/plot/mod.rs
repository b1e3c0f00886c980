//! A report as a picture: how long the hosts took, and what was sent when.
//!
//! [`curves`] takes the points out of a report, [`panels`] draws them.

mod curves;
mod panels;

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Once;

use plotters::prelude::{BitMapBackend, IntoDrawingArea as _, SVGBackend};
use plotters::style::{FontStyle, register_font};

use crate::plan::Plan;
use crate::report::Report;

/// Where a picture goes, and by its extension what it is: `.svg` or `.png`.
///
/// ```no_run
/// use kraken_sim::{Plan, PlotFile, run};
///
/// let plan = Plan::swarm(1, 100);
/// let file: PlotFile = "swarm.svg".parse()?;
/// file.draw(&plan, &run(&plan))?;
/// # Ok::<(), kraken_sim::PlotError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlotFile {
    path: PathBuf,
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Svg,
    Png,
}

/// Why a picture was not drawn.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlotError {
    /// The extension says neither `.svg` nor `.png`.
    #[error("{0:?} is no picture that can be drawn: end its name in .svg or .png")]
    Extension(String),
    /// The file cannot be written; what is in it is not whole.
    #[error("cannot write the plot {}: {source}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It cannot be drawn. Nothing was written.
    #[error("cannot draw the plot: {0}")]
    Draw(String),
}

impl FromStr for PlotFile {
    type Err = PlotError;

    fn from_str(path: &str) -> Result<Self, PlotError> {
        let extension = Path::new(path).extension().and_then(|it| it.to_str());
        let format = match extension.map(str::to_ascii_lowercase).as_deref() {
            Some("svg") => Format::Svg,
            Some("png") => Format::Png,
            _ => return Err(PlotError::Extension(path.to_owned())),
        };
        let path = path.into();
        Ok(Self { path, format })
    }
}

impl PlotFile {
    /// Draws what came of the plan. A file that is there is written over.
    ///
    /// # Errors
    /// [`PlotError::Write`] or [`PlotError::Draw`].
    pub fn draw(&self, plan: &Plan, report: &Report) -> Result<(), PlotError> {
        font()?;
        let written = match self.format {
            Format::Svg => std::fs::write(&self.path, svg(plan, report)?),
            Format::Png => {
                let pixels = pixels(plan, report)?;
                File::create(&self.path).and_then(|file| write_png(file, &pixels))
            }
        };
        written.map_err(|source| PlotError::Write {
            path: self.path.clone(),
            source,
        })
    }
}

/// Width and height of a picture.
const SIZE: (u32, u32) = (1200, 1120);

fn svg(plan: &Plan, report: &Report) -> Result<String, PlotError> {
    let mut text = String::new();
    let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
    panels::draw(&area, plan, report).map_err(|error| PlotError::Draw(error.to_string()))?;
    drop(area);
    Ok(text)
}

/// Three bytes per pixel.
fn pixels(plan: &Plan, report: &Report) -> Result<Vec<u8>, PlotError> {
    let (width, height) = SIZE;
    let mut pixels = vec![0; (width * height * 3) as usize];
    let area = BitMapBackend::with_buffer(&mut pixels, SIZE).into_drawing_area();
    panels::draw(&area, plan, report).map_err(|error| PlotError::Draw(error.to_string()))?;
    drop(area);
    Ok(pixels)
}

fn write_png(file: File, pixels: &[u8]) -> std::io::Result<()> {
    let mut file = BufWriter::new(file);
    let (width, height) = SIZE;
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    file.flush()
}

/// A font of our own: what fonts a machine has, and whether it has any, plays no role.
fn font() -> Result<(), PlotError> {
    static FONT: Once = Once::new();
    let mut registered = Ok(());
    FONT.call_once(|| {
        registered = register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular())
            .map_err(|_| PlotError::Draw("the built-in font is broken".to_owned()));
    });
    registered
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::world::run;

    fn draw(plan: &Plan, name: &str) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        let file: PlotFile = path.to_str().unwrap().parse().unwrap();
        file.draw(plan, &run(plan)).unwrap();
        fs::read(path).unwrap()
    }

    fn plan(text: &str) -> Plan {
        Plan::from_toml(text).unwrap()
    }

    #[test]
    fn an_svg_names_the_plan_and_every_class_of_hosts() {
        let plan = plan(
            "name = 'a<b'
             hosts = 12
             [network]
             slow = { share = 0.25, up = '30MB', down = '30MB' }
             [faults]
             crashes = [{ host = 0, at_seconds = 0.15, back_after_seconds = 0.1 }]",
        );
        let svg = String::from_utf8(draw(&plan, "a.SVG")).unwrap();
        for words in ["a&lt;b: 12 hosts", "ordinary: p50", "3 slow: p50", "GB/s"] {
            assert!(svg.contains(words), "{words} is not in {svg}");
        }
    }

    #[test]
    fn a_png_is_one_of_the_size_and_not_blank() {
        let png = draw(&Plan::swarm(1, 5), "a.png");
        let mut reader = png::Decoder::new(std::io::Cursor::new(png))
            .read_info()
            .unwrap();
        assert_eq!(reader.info().size(), SIZE);
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        let dark = pixels.iter().filter(|it| **it < 128).count();
        assert!(dark > 5000, "only {dark} bytes are dark");
    }

    #[test]
    fn a_run_in_which_nothing_happened_can_be_drawn() {
        let plan = plan("hosts = 2\norigins = 0\nlimit_seconds = 1");
        let svg = String::from_utf8(draw(&plan, "a.svg")).unwrap();
        assert!(svg.contains("2 NOT DONE"));
    }

    #[test]
    fn what_cannot_be_drawn_or_written_is_named() {
        for name in ["a.jpg", "png", "a.svg.gz", ""] {
            let error = name.parse::<PlotFile>().unwrap_err().to_string();
            assert!(error.contains(".svg or .png"), "{error}");
        }
        let plan = Plan::swarm(1, 2);
        for name in ["/nowhere/a.svg", "/nowhere/a.png"] {
            let file: PlotFile = name.parse().unwrap();
            let error = file.draw(&plan, &run(&plan)).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
