//! What the processor says of itself.

/// Name and features of the processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Processor {
    /// Its name, or the architecture's if it has none.
    pub name: String,
    /// Family and model, on x86.
    pub family_and_model: Option<[u32; 2]>,
    /// Sets of vector and matrix instructions that it has, whether kernels use them or not.
    pub features: Vec<&'static str>,
}

/// The name of a processor that does not tell its own.
const ARCHITECTURE: &str = if cfg!(target_arch = "x86_64") {
    "x86_64"
} else if cfg!(target_arch = "aarch64") {
    "aarch64"
} else {
    "unknown"
};

impl Processor {
    /// The processor of this process.
    pub fn of_this_process() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            x86()
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            Self { name: ARCHITECTURE.to_owned(), family_and_model: None, features: Vec::new() }
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn x86() -> Processor {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    macro_rules! features {
        ($($name:tt)*) => {
            [$(($name, is_x86_feature_detected!($name)),)*]
        };
    }
    let known = features!("sse4.2" "avx" "f16c" "fma" "avx2" "avxvnni" "avx512f" "avx512bw" "avx512vl" "avx512vnni" "avx512bf16" "avx512fp16");
    let mut features: Vec<&str> = known.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect();
    // Bits of EDX of leaf 7; a system may still refuse the tiles.
    if __cpuid(0).eax >= 7 {
        let bits = __cpuid_count(7, 0).edx;
        features.extend(
            [("amx-bf16", 22), ("amx-tile", 24), ("amx-int8", 25)]
                .into_iter()
                .filter(|(_, bit)| bits >> bit & 1 == 1)
                .map(|(name, _)| name),
        );
    }
    let mut name = String::new();
    if __cpuid(0x8000_0000).eax >= 0x8000_0004 {
        let leaves = [0x8000_0002, 0x8000_0003, 0x8000_0004].map(__cpuid);
        let words = leaves.iter().flat_map(|leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]);
        let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).take_while(|byte| *byte != 0).collect();
        name = String::from_utf8_lossy(&bytes).trim().to_owned();
    }
    if name.is_empty() {
        name = ARCHITECTURE.to_owned();
    }
    let version = __cpuid(1).eax;
    let (base_family, base_model) = (version >> 8 & 15, version >> 4 & 15);
    let family = if base_family == 15 { base_family + (version >> 20 & 255) } else { base_family };
    let model = if base_family >= 6 { base_model + (version >> 16 & 15) * 16 } else { base_model };
    Processor { name, family_and_model: Some([family, model]), features }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instructions::Instructions;

    #[test]
    fn features_agree_with_the_sets_of_instructions() {
        let processor = Processor::of_this_process();
        assert!(!processor.name.is_empty());
        for (instructions, feature) in
            [(Instructions::Avx2, "avx2"), (Instructions::Avx512, "avx512f"), (Instructions::Avx512Bf16, "avx512bf16")]
        {
            assert!(!instructions.is_available() || processor.features.contains(&feature), "{processor:?}");
        }
    }
}
