//! A figure on a page: axes, legend and series, in the units of the drawing library.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::axis::Span;
use super::look::{Hatch, LOOKS, Look, Marker};
use super::thin::thin;
use super::{Figure, Marks, Point, Scale, Series, text};

/// The library draws at whole units only: four to a pixel keep curves smooth.
pub(super) const UNIT: u32 = 4;
/// Of lines of series, and of nothing else: dashes are recognised by it.
pub(super) const LINE_WIDTH: u32 = 6;

/// Pixels at natural size.
const WIDTH: f64 = 580.0;
const PLOT_HEIGHT: f64 = 232.0;
const MARGIN: f64 = 10.0;
const LEGEND_ROW: f64 = 18.0;
const SAMPLE_WIDTH: f64 = 26.0;
const FONT_SIZE: f64 = 11.5;
const LINE_HEIGHT: f64 = 14.0;

type Drawn<DB> = Result<(), DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>>;

/// Where everything goes, in pixels. Made before drawing, since the size of the page depends on it.
pub(super) struct Layout {
    x: Span,
    y: Span,
    /// The plot's left, top, right and bottom.
    plot: [f64; 4],
    /// The names of categories, each in its lines; empty if the horizontal axis has numbers.
    names: Vec<Vec<String>>,
    /// Whether those names stand upright, because they do not fit side by side.
    upright: bool,
    /// Left, top of each entry of the legend.
    legend: Vec<(f64, f64)>,
    height: f64,
}

impl Layout {
    /// None if no point can be shown.
    pub fn of(figure: &Figure) -> Option<Self> {
        let bars = figure.series.iter().any(|series| series.marks == Marks::Bars);
        let shown = || figure.series.iter().flat_map(|series| shown(figure, series));
        shown().next()?;
        // Lines may touch the sides; points would be cut there.
        let aside = if figure.series.iter().all(|series| series.marks == Marks::Line) { 0.0 } else { 0.04 };
        let x = Span::of(&figure.x, shown().map(|point| point.x), aside)?;
        let mut axis = figure.y.clone();
        if bars && axis.scale == Scale::Linear {
            axis.scale = Scale::FromZero;
        }
        let ends = shown().flat_map(|point| {
            let (low, high) = point.interval.unwrap_or((point.y, point.y));
            [point.y, low, high].into_iter().filter(|y| axis.admits(*y))
        });
        let y = Span::of(&axis, ends, 0.06)?;

        let labels = y.ticks.iter().map(|(_, label)| text::width(label, FONT_SIZE)).fold(0.0, f64::max);
        let left = MARGIN + LINE_HEIGHT + 8.0 + labels + 8.0;
        let right = WIDTH - MARGIN - 8.0;
        let (legend, legend_height) = legend(&figure.series);
        let top = MARGIN + legend_height;
        let bottom = top + PLOT_HEIGHT;
        let (names, upright) = names(&figure.x.scale, (right - left) * x.unit() - 6.0);
        let below = match upright {
            true => names.iter().flatten().map(|name| text::width(name, FONT_SIZE)).fold(0.0, f64::max),
            false => LINE_HEIGHT * names.iter().map(Vec::len).max().unwrap_or(1) as f64,
        };
        let label = if figure.x.label.is_empty() { 0.0 } else { LINE_HEIGHT + 6.0 };
        let height = bottom + 7.0 + below + label + 6.0;
        Some(Self { x, y, plot: [left, top, right, bottom], names, upright, legend, height })
    }

    /// The page in pixels, at natural size.
    pub fn size(&self) -> (u32, u32) {
        (WIDTH as u32, self.height.ceil() as u32)
    }

    fn x(&self, value: f64) -> f64 {
        let [left, _, right, _] = self.plot;
        left + (right - left) * self.x.place(value)
    }

    fn y(&self, value: f64) -> f64 {
        let [_, top, _, bottom] = self.plot;
        bottom - (bottom - top) * self.y.place(value)
    }

    /// Draws the figure on a page of [`size`](Self::size) times [`UNIT`].
    pub fn draw<DB: DrawingBackend>(&self, figure: &Figure, page: &DrawingArea<DB, Shift>) -> Drawn<DB> {
        self.axes(figure, page)?;
        let count = figure.series.len();
        let several = |marks| figure.series.iter().filter(|series| series.marks == marks).count() > 1;
        for (index, (series, look)) in figure.series.iter().zip(LOOKS.iter().cycle()).enumerate() {
            let points: Vec<_> = shown(figure, series).collect();
            // Series over the same categories stand side by side.
            let beside = if matches!(figure.x.scale, Scale::Categories(_)) && series.marks != Marks::Line {
                let slot = (self.plot[2] - self.plot[0]) * self.x.unit() * 0.8 / count as f64;
                (slot, (index as f64 - 0.5 * (count as f64 - 1.0)) * slot)
            } else {
                (12.0, 0.0)
            };
            match series.marks {
                Marks::Line => self.line(page, &points, look, several(Marks::Line))?,
                Marks::Scatter => {
                    for point in &points {
                        mark(page, look, (self.x(point.x) + beside.1, self.y(point.y)))?;
                    }
                }
                Marks::Bars => self.bars(page, &points, look, beside)?,
            }
            self.intervals(page, &points, look, series.marks == Marks::Bars, beside.1)?;
        }
        for ((series, look), corner) in figure.series.iter().zip(LOOKS.iter().cycle()).zip(&self.legend) {
            self.entry(page, series, look, *corner)?;
        }
        page.present()
    }

    fn axes<DB: DrawingBackend>(&self, figure: &Figure, page: &DrawingArea<DB, Shift>) -> Drawn<DB> {
        let [left, top, right, bottom] = self.plot;
        let (grid, axis) = (BLACK.mix(0.14).stroke_width(UNIT), BLACK.mix(0.5).stroke_width(UNIT));
        for (value, label) in &self.y.ticks {
            let y = self.y(*value);
            line(page, &[(left, y), (right, y)], grid)?;
            write(page, label, (left - 7.0, y), HPos::Right, VPos::Center, FontTransform::None)?;
        }
        line(page, &[(left, top), (left, bottom), (right, bottom)], axis)?;
        let middle = (0.5 * (left + right), 0.5 * (top + bottom));
        if self.names.is_empty() {
            let mut free = f64::NEG_INFINITY;
            for (value, label) in &self.x.ticks {
                let (x, half) = (self.x(*value), 0.5 * text::width(label, FONT_SIZE));
                line(page, &[(x, bottom), (x, bottom + 4.0)], axis)?;
                // A label that would touch the one before is left out.
                if x - half > free {
                    write(page, label, (x, bottom + 7.0), HPos::Center, VPos::Top, FontTransform::None)?;
                    free = x + half + 6.0;
                }
            }
        }
        for ((value, _), lines) in self.x.ticks.iter().zip(&self.names) {
            let x = self.x(*value);
            for (row, name) in lines.iter().enumerate() {
                let y = bottom + 7.0 + LINE_HEIGHT * row as f64;
                match self.upright {
                    true => write(page, name, (x, y), HPos::Right, VPos::Center, FontTransform::Rotate270)?,
                    false => write(page, name, (x, y), HPos::Center, VPos::Top, FontTransform::None)?,
                }
            }
        }
        let below = self.height - 6.0 - LINE_HEIGHT;
        write(page, &figure.x.label, (middle.0, below), HPos::Center, VPos::Top, FontTransform::None)?;
        write(page, &figure.y.label, (MARGIN, middle.1), HPos::Center, VPos::Top, FontTransform::Rotate270)
    }

    fn line<DB: DrawingBackend>(
        &self,
        page: &DrawingArea<DB, Shift>,
        points: &[Point],
        look: &Look,
        marked: bool,
    ) -> Drawn<DB> {
        let values: Vec<_> = points.iter().map(|point| (point.x, point.y)).collect();
        let places: Vec<_> = thin(&values).into_iter().map(|(x, y)| (self.x(x), self.y(y))).collect();
        line(page, &places, look.color.stroke_width(LINE_WIDTH))?;
        // On a long, noisy curve markers would look like outliers; a single point is no line.
        if places.len() == 1 || marked && places.len() <= 200 {
            for place in places.iter().step_by(places.len().div_ceil(12).max(1)) {
                mark(page, look, *place)?;
            }
        }
        Ok(())
    }

    fn bars<DB: DrawingBackend>(
        &self,
        page: &DrawingArea<DB, Shift>,
        points: &[Point],
        look: &Look,
        (slot, shift): (f64, f64),
    ) -> Drawn<DB> {
        for point in points {
            let (x, half) = (self.x(point.x) + shift, 0.45 * slot);
            // `place` clamps, so that 0 is the lower end of a logarithmic axis.
            let (base, tip) = (self.y(0.0), self.y(point.y));
            bar(page, look, [x - half, base.min(tip), x + half, base.max(tip)])?;
        }
        Ok(())
    }

    fn intervals<DB: DrawingBackend>(
        &self,
        page: &DrawingArea<DB, Shift>,
        points: &[Point],
        look: &Look,
        over_bars: bool,
        shift: f64,
    ) -> Drawn<DB> {
        // On a bar of the same colour an interval would be invisible.
        let color = if over_bars { BLACK.mix(1.0) } else { look.color.mix(1.0) };
        let style = color.stroke_width(UNIT + 1);
        for point in points {
            let Some((low, high)) = point.interval else { continue };
            let (x, low, high) = (self.x(point.x) + shift, self.y(low), self.y(high));
            line(page, &[(x, low), (x, high)], style)?;
            line(page, &[(x - 4.0, low), (x + 4.0, low)], style)?;
            line(page, &[(x - 4.0, high), (x + 4.0, high)], style)?;
        }
        Ok(())
    }

    fn entry<DB: DrawingBackend>(
        &self,
        page: &DrawingArea<DB, Shift>,
        series: &Series,
        look: &Look,
        (x, y): (f64, f64),
    ) -> Drawn<DB> {
        let middle = y + 0.5 * LEGEND_ROW;
        let center = (x + 0.5 * SAMPLE_WIDTH, middle);
        match series.marks {
            Marks::Bars => bar(page, look, [x + 4.0, middle - 5.0, x + SAMPLE_WIDTH - 4.0, middle + 5.0])?,
            Marks::Scatter => mark(page, look, center)?,
            Marks::Line => {
                line(page, &[(x, middle), (x + SAMPLE_WIDTH, middle)], look.color.stroke_width(LINE_WIDTH))?;
                if series.points.len() <= 200 {
                    mark(page, look, center)?;
                }
            }
        }
        let at = (x + SAMPLE_WIDTH + 6.0, middle);
        write(page, &series.name, at, HPos::Left, VPos::Center, FontTransform::None)
    }
}

/// The points of a series that both axes can show.
fn shown<'a>(figure: &'a Figure, series: &'a Series) -> impl Iterator<Item = Point> + 'a {
    series.points.iter().copied().filter(|point| {
        let ends = point.interval.is_none_or(|(low, high)| low.is_finite() && high.is_finite());
        ends && figure.x.admits(point.x) && figure.y.admits(point.y)
    })
}

/// Left and top of each entry, row by row, and the height of all rows. One series alone needs no legend.
fn legend(series: &[Series]) -> (Vec<(f64, f64)>, f64) {
    if series.len() < 2 {
        return (Vec::new(), 0.0);
    }
    let start = (MARGIN + LINE_HEIGHT + 8.0, MARGIN - 4.0);
    let (mut x, mut y) = start;
    let mut corners = Vec::with_capacity(series.len());
    for series in series {
        let width = SAMPLE_WIDTH + 6.0 + text::width(&series.name, FONT_SIZE) + 18.0;
        if x + width > WIDTH && x > start.0 {
            (x, y) = (start.0, y + LEGEND_ROW);
        }
        corners.push((x, y));
        x += width;
    }
    (corners, y + LEGEND_ROW + 4.0 - MARGIN)
}

/// The names of categories broken between words into lines of at most `width`, or whole and upright if a word is wider.
fn names(scale: &Scale, width: f64) -> (Vec<Vec<String>>, bool) {
    let Scale::Categories(names) = scale else { return (Vec::new(), false) };
    let fits = |text: &str| text::width(text, FONT_SIZE) <= width;
    if !names.iter().flat_map(|name| name.split_whitespace()).all(fits) {
        return (names.iter().map(|name| vec![name.clone()]).collect(), true);
    }
    let broken = names.iter().map(|name| {
        let mut lines: Vec<String> = Vec::new();
        for word in name.split_whitespace() {
            match lines.last_mut() {
                Some(line) if fits(&format!("{line} {word}")) => *line += &format!(" {word}"),
                _ => lines.push(word.to_owned()),
            }
        }
        lines
    });
    (broken.collect(), false)
}

fn units((x, y): (f64, f64)) -> (i32, i32) {
    let scale = f64::from(UNIT);
    ((x * scale).round() as i32, (y * scale).round() as i32)
}

fn line<DB: DrawingBackend>(page: &DrawingArea<DB, Shift>, places: &[(f64, f64)], style: ShapeStyle) -> Drawn<DB> {
    page.draw(&PathElement::new(places.iter().copied().map(units).collect::<Vec<_>>(), style))
}

fn write<DB: DrawingBackend>(
    page: &DrawingArea<DB, Shift>,
    text: &str,
    place: (f64, f64),
    across: HPos,
    down: VPos,
    turn: FontTransform,
) -> Drawn<DB> {
    // The library divides the size of a font by 1.24.
    let font = FontDesc::new(FontFamily::SansSerif, 1.24 * FONT_SIZE * f64::from(UNIT), FontStyle::Normal);
    let style = TextStyle::from(font.transform(turn)).color(&BLACK).pos(Pos::new(across, down));
    page.draw(&Text::new(text, units(place), style))
}

/// A point of a series: a mark that reaches three pixels around its place.
fn mark<DB: DrawingBackend>(page: &DrawingArea<DB, Shift>, look: &Look, (x, y): (f64, f64)) -> Drawn<DB> {
    const REACH: f64 = 3.0;
    let at = |dx: f64, dy: f64| units((x + dx * REACH, y + dy * REACH));
    let (filled, frame) = (look.color.filled(), look.color.stroke_width(UNIT + 1));
    let path = |ends: &[(f64, f64)]| PathElement::new(ends.iter().map(|(x, y)| at(*x, *y)).collect::<Vec<_>>(), frame);
    let reach = REACH * f64::from(UNIT);
    match look.marker {
        Marker::Disc => page.draw(&Circle::new(at(0.0, 0.0), reach, filled)),
        Marker::Square => page.draw(&Rectangle::new([at(-0.9, -0.9), at(0.9, 0.9)], filled)),
        Marker::Triangle => page.draw(&Polygon::new(vec![at(-1.1, 0.9), at(1.1, 0.9), at(0.0, -1.1)], filled)),
        Marker::Ring => page.draw(&Circle::new(at(0.0, 0.0), reach, frame)),
        Marker::Frame => page.draw(&path(&[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9), (-0.9, -0.9)])),
        Marker::Cross => {
            page.draw(&path(&[(-1.0, -1.0), (1.0, 1.0)]))?;
            page.draw(&path(&[(-1.0, 1.0), (1.0, -1.0)]))
        }
    }
}

/// A bar with its filling; `[left, top, right, bottom]`.
fn bar<DB: DrawingBackend>(page: &DrawingArea<DB, Shift>, look: &Look, sides: [f64; 4]) -> Drawn<DB> {
    const APART: f64 = 5.0;
    let [left, top, right, bottom] = sides;
    let share = match look.hatch {
        Hatch::Solid => 0.85,
        Hatch::Light => 0.35,
        _ => 0.12,
    };
    page.draw(&Rectangle::new([units((left, top)), units((right, bottom))], look.color.mix(share).filled()))?;
    let style = look.color.stroke_width(UNIT);
    if matches!(look.hatch, Hatch::Rising | Hatch::Crossed) {
        // Lines x + y = c, cut at the sides; falling ones are their mirror image.
        for c in steps(left + top, right + bottom, APART) {
            let (from, to) = ((c - bottom).max(left), (c - top).min(right));
            line(page, &[(from, c - from), (to, c - to)], style)?;
        }
    }
    if matches!(look.hatch, Hatch::Falling | Hatch::Crossed) {
        for c in steps(left - bottom, right - top, APART) {
            let (from, to) = ((c + top).max(left), (c + bottom).min(right));
            line(page, &[(from, from - c), (to, to - c)], style)?;
        }
    }
    if look.hatch == Hatch::Level {
        for y in steps(top, bottom, 0.8 * APART) {
            line(page, &[(left, y), (right, y)], style)?;
        }
    }
    line(page, &[(left, top), (right, top), (right, bottom), (left, bottom), (left, top)], style)
}

/// Multiples of `step` strictly between two values.
fn steps(from: f64, to: f64, step: f64) -> impl Iterator<Item = f64> {
    let first = (from / step).floor() as i64 + 1;
    (first..).map(move |count| count as f64 * step).take_while(move |value| *value < to)
}
