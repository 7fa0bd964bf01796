//! Figures: lines, points and bars over linear, logarithmic or categorical axes, as SVG and PNG.
//!
//! A picture for a page uses `currentColor` for all but the series, so that the page's own colours, light or dark, apply.
//! A picture for a file is opaque, and needs no font of the machine to become pixels. Series differ in colour, and in
//! dashes, markers or hatching: they can be told apart in print.

mod axis;
mod curves;
mod draw;
mod look;
mod png;
mod raster;
mod text;
mod thin;

pub use curves::TrainingCurves;

use plotters::prelude::*;
use tiny_skia::Pixmap;

use crate::ReportError;
use draw::{LINE_WIDTH, Layout, UNIT};
use look::LOOKS;
use raster::Raster;

/// Pixels of a PNG to one of the natural size: enough for print.
const PNG_SCALE: u32 = 3;

/// Series over common axes.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// What is shown; the caption is the page's to set.
    pub title: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// The series, in the order of the legend. The legend appears if there are two or more.
    pub series: Vec<Series>,
}

/// One axis of a figure.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    /// What is measured, with its unit.
    pub label: String,
    /// From values to places.
    pub scale: Scale,
}

/// How an axis places values.
#[derive(Debug, Clone, PartialEq)]
pub enum Scale {
    /// Equal differences are equal lengths; only the part with values is shown.
    Linear,
    /// Linear from 0: lengths of bars then have the ratio of their values.
    FromZero,
    /// Equal ratios are equal lengths. Values that are not positive are left out.
    Log,
    /// The n-th name stands at value n, counted from 0. For the horizontal axis; series stand side by side.
    Categories(Vec<String>),
}

/// Points that belong together.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// How the points are drawn.
    pub marks: Marks,
    /// The points; x ascending for a line. Those that are not finite, or that an axis cannot show, are left out.
    pub points: Vec<Point>,
}

/// How the points of a series are drawn. Intervals are drawn with each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marks {
    /// Connected.
    Line,
    /// One mark each.
    Scatter,
    /// One bar each, from 0.
    Bars,
}

/// One value of a series.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Where.
    pub x: f64,
    /// How much.
    pub y: f64,
    /// The ends of its error bar, such as a 95 % interval.
    pub interval: Option<(f64, f64)>,
}

impl From<(f64, f64)> for Point {
    fn from((x, y): (f64, f64)) -> Self {
        Self { x, y, interval: None }
    }
}

impl Point {
    /// Whether it can be shown at all.
    pub fn is_finite(&self) -> bool {
        self.x.is_finite() && self.y.is_finite()
    }
}

impl Series {
    /// A series of points.
    pub fn new<P: Into<Point>>(name: impl Into<String>, marks: Marks, points: impl IntoIterator<Item = P>) -> Self {
        Self { name: name.into(), marks, points: points.into_iter().map(Into::into).collect() }
    }
}

impl Axis {
    /// An axis with a label and a scale.
    pub fn new(label: impl Into<String>, scale: Scale) -> Self {
        Self { label: label.into(), scale }
    }

    /// Whether the axis has a place for a value.
    fn admits(&self, value: f64) -> bool {
        match &self.scale {
            Scale::Linear | Scale::FromZero => value.is_finite(),
            Scale::Log => value.is_finite() && value > 0.0,
            Scale::Categories(names) => value > -0.5 && value < names.len() as f64 - 0.5,
        }
    }
}

impl Figure {
    /// The figure as an `<svg>` element for a page, which scales to the width it is given and takes the page's colours.
    ///
    /// # Errors
    /// [`ReportError::EmptyFigure`] without a point that can be shown, [`ReportError::Draw`] if the drawing library fails.
    pub fn svg(&self) -> Result<String, ReportError> {
        let (svg, size) = self.drawn()?;
        Ok(svg.replacen(&size_attributes(size, UNIT), r#"role="img""#, 1).replace("#000000", "currentColor"))
    }

    /// The figure as an SVG file: of its natural size, on white.
    ///
    /// # Errors
    /// As of [`svg`](Self::svg).
    pub fn svg_file(&self) -> Result<String, ReportError> {
        let (svg, size) = self.drawn()?;
        let svg = svg.replacen(&size_attributes(size, UNIT), &size_attributes(size, 1), 1);
        let paper = "<rect width=\"100%\" height=\"100%\" fill=\"#FFFFFF\"/>\n";
        let inside = svg.find("<svg").and_then(|tag| Some(tag + svg[tag..].find('>')? + 1)).unwrap_or(0);
        Ok(format!("{}\n{paper}{}", &svg[..inside], &svg[inside..]))
    }

    /// The figure as a PNG file: on white, three times its natural size.
    ///
    /// # Errors
    /// As of [`svg`](Self::svg).
    pub fn png(&self) -> Result<Vec<u8>, ReportError> {
        let layout = self.layout()?;
        let size = layout.size();
        let (width, height) = (PNG_SCALE * size.0, PNG_SCALE * size.1);
        let mut pixmap = Pixmap::new(width, height).ok_or_else(|| self.failed("no memory for its pixels"))?;
        let raster = Raster::new(&mut pixmap, (UNIT * size.0, UNIT * size.1), PNG_SCALE as f32 / UNIT as f32);
        layout.draw(self, &raster.into_drawing_area()).map_err(|error| self.failed(&error.to_string()))?;
        let rgb: Vec<u8> = pixmap.data().chunks(4).flat_map(|pixel| pixel[..3].iter().copied()).collect();
        Ok(png::encode(width, height, &rgb))
    }

    fn layout(&self) -> Result<Layout, ReportError> {
        Layout::of(self).ok_or_else(|| ReportError::EmptyFigure { title: self.title.clone() })
    }

    /// What the library makes of the figure, with dashes, and its natural size.
    fn drawn(&self) -> Result<(String, (u32, u32)), ReportError> {
        let layout = self.layout()?;
        let size = layout.size();
        let mut svg = String::new();
        let page = SVGBackend::with_string(&mut svg, (UNIT * size.0, UNIT * size.1)).into_drawing_area();
        layout.draw(self, &page).map_err(|error| self.failed(&error.to_string()))?;
        drop(page);
        for look in LOOKS.iter().filter(|look| !look.dashes.is_empty()) {
            let RGBColor(r, g, b) = look.color;
            let stroke = format!(r##"stroke="#{r:02X}{g:02X}{b:02X}" stroke-width="{LINE_WIDTH}""##);
            let dashes: Vec<_> = look.dashes.iter().map(u32::to_string).collect();
            svg = svg.replace(&stroke, &format!(r#"{stroke} stroke-dasharray="{}""#, dashes.join(" ")));
        }
        Ok((svg, size))
    }

    fn failed(&self, reason: &str) -> ReportError {
        ReportError::Draw { title: self.title.clone(), reason: reason.to_owned() }
    }
}

fn size_attributes((width, height): (u32, u32), scale: u32) -> String {
    format!(r#"width="{}" height="{}""#, scale * width, scale * height)
}

#[cfg(test)]
mod tests;
