//! What is lost when the numbers of a model are packed.

use rayon::prelude::*;

use super::GgufType;

/// Numbers that are compared at a time; a multiple of every block.
const CHUNK: usize = 1 << 16;

/// The error of one tensor in its type against the numbers that it was made of.
#[derive(Debug, Clone, PartialEq)]
pub struct PackingError {
    /// Name in the GGUF file.
    pub tensor: String,
    /// Name in the model's folder.
    pub source: String,
    /// Type in the file.
    pub dtype: GgufType,
    /// Sum of the squares of the errors.
    pub error_squares: f64,
    /// Sum of the squares of the numbers.
    pub squares: f64,
    /// The largest magnitude of an error.
    pub largest: f32,
}

impl PackingError {
    /// The Frobenius norm of the error over that of the numbers; 0 if all numbers are.
    pub fn relative(&self) -> f64 {
        relative([self])
    }

    /// Compares `values` with the `bytes` that they became.
    pub(super) fn of(tensor: &str, source: &str, dtype: GgufType, values: &[f32], bytes: &[u8]) -> Self {
        let size = dtype.bytes(&[CHUNK]).expect("a chunk is whole blocks");
        let parts = values.par_chunks(CHUNK).zip(bytes.par_chunks(size)).map(|(values, bytes)| {
            let (mut error_squares, mut squares, mut largest) = (0.0, 0.0, 0f32);
            for (value, packed) in values.iter().zip(dtype.decode(bytes)) {
                let error = value - packed;
                error_squares += f64::from(error).powi(2);
                squares += f64::from(*value).powi(2);
                largest = largest.max(error.abs());
            }
            (error_squares, squares, largest)
        });
        // In order, so that the sums do not depend on the number of threads.
        let parts: Vec<(f64, f64, f32)> = parts.collect();
        Self {
            tensor: tensor.to_owned(),
            source: source.to_owned(),
            dtype,
            error_squares: parts.iter().map(|part| part.0).sum(),
            squares: parts.iter().map(|part| part.1).sum(),
            largest: parts.iter().map(|part| part.2).fold(0.0, f32::max),
        }
    }
}

/// The Frobenius norm of all errors over that of all numbers; 0 if all numbers are.
pub(super) fn relative<'a>(errors: impl IntoIterator<Item = &'a PackingError>) -> f64 {
    let (mut error_squares, mut squares) = (0.0, 0.0);
    for error in errors {
        error_squares += error.error_squares;
        squares += error.squares;
    }
    if squares == 0.0 { 0.0 } else { (error_squares / squares).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_the_norm_of_the_difference() {
        let values: Vec<f32> = (0..3 * CHUNK).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
        let mut bytes = Vec::new();
        GgufType::Q8_0.encode(&values, &mut bytes).unwrap();
        let error = PackingError::of("t", "s", GgufType::Q8_0, &values, &bytes);
        let packed = GgufType::Q8_0.decode(&bytes);
        let norm = |numbers: Vec<f32>| numbers.iter().map(|n| f64::from(*n).powi(2)).sum::<f64>().sqrt();
        let difference: Vec<f32> = values.iter().zip(&packed).map(|(a, b)| a - b).collect();
        let largest = difference.iter().fold(0f32, |largest, d| largest.max(d.abs()));
        let expected = norm(difference) / norm(values);
        assert!(expected > 1e-3 && (error.relative() - expected).abs() < 1e-9 * expected);
        assert_eq!(error.largest, largest);
        let none = PackingError::of("t", "s", GgufType::F16, &[0.0; 8], &[0; 16]);
        assert_eq!((none.relative(), none.largest), (0.0, 0.0));
    }
}
