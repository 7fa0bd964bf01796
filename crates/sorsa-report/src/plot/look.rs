//! How series differ: by colour, and without colour by dashes, marker and hatching.

use plotters::style::RGBColor;

/// The looks of the series of a figure, in order; after the last they repeat.
pub(super) const LOOKS: [Look; 6] = [
    Look { color: RGBColor(0x2f, 0x74, 0xc9), dashes: &[], marker: Marker::Disc, hatch: Hatch::Solid },
    Look { color: RGBColor(0xd9, 0x6d, 0x12), dashes: &[28, 16], marker: Marker::Square, hatch: Hatch::Rising },
    Look { color: RGBColor(0x1f, 0x95, 0x6a), dashes: &[8, 12], marker: Marker::Triangle, hatch: Hatch::Light },
    Look { color: RGBColor(0xb0, 0x4a, 0xa8), dashes: &[40, 12, 8, 12], marker: Marker::Ring, hatch: Hatch::Falling },
    Look { color: RGBColor(0x8a, 0x7a, 0x1c), dashes: &[16, 8], marker: Marker::Frame, hatch: Hatch::Level },
    Look { color: RGBColor(0xb8, 0x32, 0x43), dashes: &[4, 8], marker: Marker::Cross, hatch: Hatch::Crossed },
];

/// What tells one series from the others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    pub color: RGBColor,
    /// Lengths drawn and left out by turns, in drawing units; empty for a continuous line.
    pub dashes: &'static [u32],
    pub marker: Marker,
    pub hatch: Hatch,
}

/// The shape of a point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Marker {
    Disc,
    Square,
    Triangle,
    Ring,
    Frame,
    Cross,
}

/// The filling of a bar.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Hatch {
    Solid,
    /// A quarter of the colour.
    Light,
    Rising,
    Falling,
    Level,
    Crossed,
}

/// The dashes of the series with a colour; none for a colour that is no series'.
pub(super) fn dashes((r, g, b): (u8, u8, u8)) -> &'static [u32] {
    let found = LOOKS.iter().find(|look| look.color == RGBColor(r, g, b));
    found.map_or(&[], |look| look.dashes)
}
