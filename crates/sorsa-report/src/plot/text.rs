//! Letters for machines without fonts: the outlines and widths of DejaVu Sans, which is part of the binary.

use skrifa::instance::{LocationRef, Size};
use skrifa::outline::{DrawSettings, OutlinePen};
use skrifa::{FontRef, MetadataProvider};
use tiny_skia::{Path, PathBuilder, Transform};

/// The font, or none if its bytes are not one.
fn font() -> Option<FontRef<'static>> {
    FontRef::new(dejavu::sans::regular()).ok()
}

/// Units of the font that are as long as the size of its letters.
fn units_per_em(font: &FontRef<'_>) -> f32 {
    f32::from(font.metrics(Size::unscaled(), LocationRef::default()).units_per_em)
}

/// How wide a text is, in the unit of `size`. Kerning is left out.
pub(super) fn width(text: &str, size: f64) -> f64 {
    let Some(font) = font() else { return 0.6 * size * text.chars().count() as f64 };
    let advance: f32 = text.chars().map(|c| advance(&font, c)).sum();
    f64::from(advance) * size / f64::from(units_per_em(&font))
}

/// The outline of a text that starts at the origin of its baseline, y downwards. `None` if there is nothing to draw.
pub(super) fn outline(text: &str, size: f32) -> Option<Path> {
    let font = font()?;
    let scale = size / units_per_em(&font);
    let (characters, outlines) = (font.charmap(), font.outline_glyphs());
    let (mut path, mut x) = (PathBuilder::new(), 0.0);
    for c in text.chars() {
        if let Some(glyph) = characters.map(c).and_then(|glyph| outlines.get(glyph)) {
            let settings = DrawSettings::unhinted(Size::unscaled(), LocationRef::default());
            glyph.draw(settings, &mut Pen { path: &mut path, x }).ok()?;
        }
        x += advance(&font, c);
    }
    path.finish()?.transform(Transform::from_scale(scale, -scale))
}

fn advance(font: &FontRef<'_>, c: char) -> f32 {
    let metrics = font.glyph_metrics(Size::unscaled(), LocationRef::default());
    font.charmap().map(c).and_then(|glyph| metrics.advance_width(glyph)).unwrap_or(0.0)
}

/// Draws a glyph into a path, moved to the right by `x` units of the font.
struct Pen<'a> {
    path: &'a mut PathBuilder,
    x: f32,
}

impl OutlinePen for Pen<'_> {
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
        let characters = font().unwrap().charmap();
        for c in "‖UᵀU − I‖ / √rank, ΔΣ ΔD σ γ κ η ₀ · 95 %".chars() {
            assert!(characters.map(c).is_some(), "{c}");
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
