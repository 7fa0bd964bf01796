//! Changes of bytes that find faults of readers: the same in every run of a seed.

/// Pieces that formats from outside are made of.
const PIECES: [&[u8]; 44] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b":",
    b",",
    b"null",
    b"true",
    b"false",
    b"-1",
    b"0",
    b"1e400",
    b"1e-400",
    b"0.5",
    b"-0.0",
    b"18446744073709551615",
    b"18446744073709551616",
    b"9223372036854775808",
    b"4294967296",
    b"2147483648",
    b"65537",
    b"\\u0000",
    b"\\ud800",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"{{",
    b"}}",
    b"{%",
    b"%}",
    b"{% for a in messages %}",
    b"{% endfor %}",
    b"{% generation %}",
    b"| tojson",
    b"| join",
    b"range(9)",
    b"messages[0]",
    b"PAR1",
    b"GGUF",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"BF16",
    b"F32",
];

/// Changes bytes at random.
pub struct Mutator {
    state: u64,
}

impl Mutator {
    /// The changes of a seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    /// A number below `end`, or 0.
    pub fn below(&mut self, end: usize) -> usize {
        // xorshift64*
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let number = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16;
        if end == 0 { 0 } else { (number % end as u64) as usize }
    }

    /// One of `seeds`, changed in up to eight places.
    pub fn changed(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(8) {
            let other = &seeds[self.below(seeds.len())];
            self.change(&mut bytes, other);
        }
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        let at = self.below(bytes.len() + 1);
        let length = 1 << self.below(7);
        let end = (at + self.below(length + 1)).min(bytes.len());
        match self.below(9) {
            0 => match bytes.get_mut(at) {
                Some(byte) => *byte ^= 1 << self.below(8),
                None => bytes.push(b'0'),
            },
            1 => match bytes.get_mut(at) {
                Some(byte) => *byte = self.below(256) as u8,
                None => bytes.push(0),
            },
            2 => drop(bytes.drain(at..end)),
            3 => {
                let copy = bytes[at..end].to_vec();
                let to = self.below(bytes.len() + 1);
                bytes.splice(to..to, copy);
            }
            4 | 5 => {
                let piece = PIECES[self.below(PIECES.len())];
                let end = if self.below(2) == 0 { at } else { end };
                bytes.splice(at..end, piece.iter().copied());
            }
            6 => {
                let from = self.below(other.len() + 1);
                let to = (from + self.below(length + 1)).min(other.len());
                bytes.splice(at..end, other[from..to].iter().copied());
            }
            // A number of a text becomes another.
            7 => {
                let Some(start) = (at..bytes.len()).find(|index| bytes[*index].is_ascii_digit()) else { return };
                let digits = bytes[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                let number = (1u64 << self.below(64)).wrapping_sub(self.below(3) as u64).to_string();
                bytes.splice(start..start + digits, number.into_bytes());
            }
            _ => bytes.truncate(at),
        }
    }
}
