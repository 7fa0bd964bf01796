//! PNG files (W3C Recommendation, third edition): 8-bit RGB, no filter, one chunk of pixels.

use crc::{CRC_32_ISO_HDLC, Crc};

/// A picture as a PNG file. `rgb` holds `3 * width * height` bytes, rows from the top.
pub(super) fn encode(width: u32, height: u32, rgb: &[u8]) -> Vec<u8> {
    let row = 3 * width as usize;
    assert_eq!(rgb.len(), row * height as usize, "three bytes a pixel");
    let mut header = [width.to_be_bytes(), height.to_be_bytes()].concat();
    header.extend([8, 2, 0, 0, 0]); // bits, RGB, and the only compression, filtering and order of rows there is
    let filtered: Vec<u8> = rgb.chunks(row).flat_map(|row| std::iter::once(0).chain(row.iter().copied())).collect();
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, content) in
        [(b"IHDR", header), (b"IDAT", miniz_oxide::deflate::compress_to_vec_zlib(&filtered, 9)), (b"IEND", Vec::new())]
    {
        file.extend((content.len() as u32).to_be_bytes());
        let start = file.len();
        file.extend(kind);
        file.extend(content);
        let sum = Crc::<u32>::new(&CRC_32_ISO_HDLC).checksum(&file[start..]);
        file.extend(sum.to_be_bytes());
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_signature_the_size_and_the_known_end() {
        let file = encode(2, 1, &[255, 0, 0, 0, 0, 255]);
        assert_eq!(&file[..8], b"\x89PNG\r\n\x1a\n");
        assert_eq!(&file[16..24], [0, 0, 0, 2, 0, 0, 0, 1]);
        // The checksum of an empty IEND is in every PNG file there is.
        assert_eq!(&file[file.len() - 12..], b"\0\0\0\0IEND\xae\x42\x60\x82");
    }

    #[test]
    fn pixels_survive() {
        let rgb: Vec<u8> = (0..3 * 7 * 5).map(|byte| (byte * 37 % 256) as u8).collect();
        let file = encode(7, 5, &rgb);
        let length = u32::from_be_bytes(file[33..37].try_into().unwrap()) as usize;
        let rows = miniz_oxide::inflate::decompress_to_vec_zlib(&file[41..41 + length]).unwrap();
        let read: Vec<u8> = rows.chunks(1 + 3 * 7).flat_map(|row| row[1..].to_vec()).collect();
        assert_eq!(read, rgb);
    }
}
