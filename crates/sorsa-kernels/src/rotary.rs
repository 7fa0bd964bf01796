//! Rotary position embedding alone, without a backward pass.

use crate::attention::{Angles, Heads};

/// Rotates `x` by `angles`; elements beyond the planes stay as they are.
///
/// # Shapes
///
/// - `x`, output: `[batch, heads, seq, width]`
///
/// # Panics
///
/// Panics if the angles do not fit the shape.
pub fn rotate(x: Heads<'_>, angles: Angles<'_>) -> Vec<f32> {
    let [batch, heads, seq, width] = x.shape();
    let planes = angles.planes;
    let mut output = Vec::with_capacity(batch * heads * seq * width);
    for row in 0..batch {
        for head in 0..heads {
            let head = x.head(row, head);
            for index in 0..seq {
                let at = angles.start(row) + index * planes;
                let (cos, sin) = (&angles.cos[at..at + planes], &angles.sin[at..at + planes]);
                let (first, rest) = head.row(index).split_at(planes);
                let angles = || cos.iter().zip(sin);
                output.extend(first.iter().zip(rest).zip(angles()).map(|((a, b), (cos, sin))| a * cos - b * sin));
                output.extend(first.iter().zip(rest).zip(angles()).map(|((a, b), (cos, sin))| b * cos + a * sin));
                output.extend(&rest[planes..]);
            }
        }
    }
    output
}
