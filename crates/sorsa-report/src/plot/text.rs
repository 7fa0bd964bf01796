//! Letters for machines without fonts: the outlines and widths of DejaVu Sans, which is part of the binary.

use tiny_skia::{Path, PathBuilder, Transform};
use ttf_parser::{Face, OutlineBuilder};

/// The font, or none if its bytes are not one.
fn face() -> Option<Face<'static>> {
    Face::parse(dejavu::sans::regular(), 0).ok()
}

/// How wide a text is, in the unit of `size`. Kerning is left out.
pub(super) fn width(text: &str, size: f64) -> f64 {
    let Some(face) = face() else { return 0.6 * size * text.chars().count() as f64 };
    let advance: u32 = text.chars().map(|c| advance(&face, c)).sum();
    f64::from(advance) * size / f64::from(face.units_per_em())
}

/// The outline of a text that starts at the origin of its baseline, y downwards. `None` if there is nothing to draw.
pub(super) fn outline(text: &str, size: f32) -> Option<Path> {
    let face = face()?;
    let scale = size / f32::from(face.units_per_em());
    let (mut path, mut x) = (PathBuilder::new(), 0.0);
    for c in text.chars() {
        if let Some(glyph) = face.glyph_index(c) {
            face.outline_glyph(glyph, &mut Pen { path: &mut path, x });
        }
        x += advance(&face, c) as f32;
    }
    path.finish()?.transform(Transform::from_scale(scale, -scale))
}

fn advance(face: &Face, c: char) -> u32 {
    face.glyph_index(c).and_then(|glyph| face.glyph_hor_advance(glyph)).map_or(0, u32::from)
}

/// Draws a glyph into a path, moved to the right by `x` units of the font.
struct Pen<'a> {
    path: &'a mut PathBuilder,
    x: f32,
}

impl OutlineBuilder for Pen<'_> {
    fn move_to(&mut self, x: f32, y: f32) {
        self.path.move_to(self.x + x, y);
    }

    fn line_to(&mut self, x: f32, y: f32) {
        self.path.line_to(self.x + x, y);
    }

    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        self.path.quad_to(self.x + x1, y1, self.x + x, y);
    }

    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        self.path.cubic_to(self.x + x1, y1, self.x + x2, y2, self.x + x, y);
    }

    fn close(&mut self) {
        self.path.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_font_has_the_letters_of_the_field() {
        let face = face().unwrap();
        for c in "‖UᵀU − I‖ / √rank, ΔΣ ΔD σ γ κ η ₀ · 95 %".chars() {
            assert!(face.glyph_index(c).is_some(), "{c}");
        }
    }

    #[test]
    fn an_outline_is_about_as_wide_as_its_text() {
        let bounds = outline("learning rate", 20.0).unwrap().bounds();
        assert!((f64::from(bounds.width()) - width("learning rate", 20.0)).abs() < 3.0);
        assert!(bounds.top() < 0.0 && bounds.bottom() > 0.0, "above and below the baseline: {bounds:?}");
        assert!(outline(" ", 20.0).is_none());
    }
}
