//! Draws pixels for the drawing library, with smooth edges and the embedded font.

use std::convert::Infallible;

use plotters::style::text_anchor::{HPos, VPos};
use plotters_backend::{
    BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingBackend, DrawingErrorKind, FontTransform,
};
use tiny_skia::{Color, FillRule, LineCap, Paint, Path, PathBuilder, Pixmap, Rect, Stroke, StrokeDash, Transform};

use super::draw::LINE_WIDTH;
use super::look::dashes;
use super::text;

type Drawn = Result<(), DrawingErrorKind<Infallible>>;

/// A white page. Drawing units are `scale` pixels wide.
pub(super) struct Raster<'a> {
    pixmap: &'a mut Pixmap,
    size: (u32, u32),
    scale: f32,
}

impl<'a> Raster<'a> {
    /// `size` in drawing units; `pixmap` is `scale` times as large.
    pub fn new(pixmap: &'a mut Pixmap, size: (u32, u32), scale: f32) -> Self {
        pixmap.fill(Color::WHITE);
        Self { pixmap, size, scale }
    }

    fn fill(&mut self, path: Option<Path>, color: BackendColor, place: Transform) {
        if let Some(path) = path {
            let place = place.post_scale(self.scale, self.scale);
            self.pixmap.fill_path(&path, &paint(color), FillRule::Winding, place, None);
        }
    }

    fn stroke(&mut self, path: Option<Path>, style: &impl BackendStyle) {
        let Some(path) = path else { return };
        let width = style.stroke_width();
        let lengths = if width == LINE_WIDTH { dashes(style.color().rgb) } else { &[] };
        let dash = StrokeDash::new(lengths.iter().map(|length| *length as f32).collect(), 0.0);
        let stroke = Stroke { width: width as f32, dash, line_cap: LineCap::Butt, ..Stroke::default() };
        let place = Transform::from_scale(self.scale, self.scale);
        self.pixmap.stroke_path(&path, &paint(style.color()), &stroke, place, None);
    }
}

fn paint(BackendColor { alpha, rgb: (r, g, b) }: BackendColor) -> Paint<'static> {
    let mut paint = Paint { anti_alias: true, ..Paint::default() };
    paint.set_color_rgba8(r, g, b, (255.0 * alpha).round() as u8);
    paint
}

fn polyline(points: impl IntoIterator<Item = BackendCoord>, close: bool) -> Option<Path> {
    let mut path = PathBuilder::new();
    for (index, (x, y)) in points.into_iter().enumerate() {
        match index {
            0 => path.move_to(x as f32, y as f32),
            _ => path.line_to(x as f32, y as f32),
        }
    }
    if close {
        path.close();
    }
    path.finish()
}

impl DrawingBackend for Raster<'_> {
    type ErrorType = Infallible;

    fn get_size(&self) -> (u32, u32) {
        self.size
    }

    fn ensure_prepared(&mut self) -> Drawn {
        Ok(())
    }

    fn present(&mut self) -> Drawn {
        Ok(())
    }

    fn draw_pixel(&mut self, (x, y): BackendCoord, color: BackendColor) -> Drawn {
        let unit = Rect::from_xywh(x as f32, y as f32, 1.0, 1.0).map(PathBuilder::from_rect);
        self.fill(unit, color, Transform::identity());
        Ok(())
    }

    fn draw_line<S: BackendStyle>(&mut self, from: BackendCoord, to: BackendCoord, style: &S) -> Drawn {
        self.stroke(polyline([from, to], false), style);
        Ok(())
    }

    fn draw_rect<S: BackendStyle>(&mut self, from: BackendCoord, to: BackendCoord, style: &S, fill: bool) -> Drawn {
        let corners = [from, (to.0, from.1), to, (from.0, to.1)];
        let path = polyline(corners, true);
        if fill {
            self.fill(path, style.color(), Transform::identity())
        } else {
            self.stroke(path, style)
        }
        Ok(())
    }

    fn draw_path<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(&mut self, path: I, style: &S) -> Drawn {
        self.stroke(polyline(path, false), style);
        Ok(())
    }

    fn draw_circle<S: BackendStyle>(&mut self, (x, y): BackendCoord, radius: u32, style: &S, fill: bool) -> Drawn {
        let path = PathBuilder::from_circle(x as f32, y as f32, radius as f32);
        if fill {
            self.fill(path, style.color(), Transform::identity())
        } else {
            self.stroke(path, style)
        }
        Ok(())
    }

    fn fill_polygon<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(&mut self, corners: I, style: &S) -> Drawn {
        self.fill(polyline(corners, true), style.color(), Transform::identity());
        Ok(())
    }

    /// Places a text as the library's SVG does, so that both pictures are the same.
    fn draw_text<S: BackendTextStyle>(&mut self, text: &str, style: &S, (x, y): BackendCoord) -> Drawn {
        let size = style.size() / 1.24;
        let across = match style.anchor().h_pos {
            HPos::Left => 0.0,
            HPos::Center => 0.5,
            HPos::Right => 1.0,
        };
        // Of the font: an "ex" is 0.55 em.
        let down = match style.anchor().v_pos {
            VPos::Top => 0.76,
            VPos::Center => 0.275,
            VPos::Bottom => -0.275,
        };
        let degrees = match style.transform() {
            FontTransform::None => 0.0,
            FontTransform::Rotate90 => 90.0,
            FontTransform::Rotate180 => 180.0,
            FontTransform::Rotate270 => 270.0,
        };
        let place = Transform::from_translate((-across * text::width(text, size)) as f32, (down * size) as f32)
            .post_rotate(degrees)
            .post_translate(x as f32, y as f32);
        self.fill(text::outline(text, size as f32), style.color(), place);
        Ok(())
    }

    fn estimate_text_size<S: BackendTextStyle>(
        &self,
        text: &str,
        style: &S,
    ) -> Result<(u32, u32), DrawingErrorKind<Infallible>> {
        Ok((text::width(text, style.size() / 1.24).ceil() as u32, style.size().ceil() as u32))
    }
}
