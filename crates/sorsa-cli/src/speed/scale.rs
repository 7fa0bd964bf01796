//! The configurations of `--scale`: each quantity takes a few values, while the others keep the given ones.

use std::fmt::Display;

use super::args::{Sizes, SpeedArgs};

/// One configuration: the given options, with one quantity replaced.
#[derive(Debug, Clone, Default)]
pub struct Variation {
    /// Option of the varied quantity; `None` if the configuration is the given one.
    pub varied: Option<&'static str>,
    value: usize,
}

/// Varies batch, sequence length, rank, layers and threads, one after the other.
pub fn variations(args: &SpeedArgs) -> Vec<Variation> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = args.threads.unwrap_or(cores);
    let threads: Vec<usize> = std::iter::successors(Some(1), |n| Some(n * 2)).take_while(|n| *n <= threads).collect();
    let tables: [(&'static str, &[usize]); 5] = [
        ("batch", &[1, 2, 4, 8]),
        ("seq", &[64, 128, 256, 512, 1024]),
        ("rank", &[4, 8, 16, 32, 64]),
        ("layers", &[2, 4, 8]),
        ("threads", &threads),
    ];
    tables
        .into_iter()
        .flat_map(|(name, values)| values.iter().map(move |value| Variation { varied: Some(name), value: *value }))
        .collect()
}

impl Variation {
    /// The options for the child process.
    pub fn options(&self, args: &SpeedArgs) -> Vec<String> {
        let Sizes { dim, layers, heads, kv_heads, ffn, vocab, batch, seq } = args.sizes();
        let mut options = Vec::new();
        let mut put = |name: &str, value: Option<&dyn Display>| {
            let given = value.map(ToString::to_string);
            let value = if self.varied == Some(name) { Some(self.value.to_string()) } else { given };
            options.extend(value.into_iter().flat_map(|value| [format!("--{name}"), value]));
        };
        put("dim", Some(&dim));
        put("layers", Some(&layers));
        put("heads", Some(&heads));
        put("kv-heads", Some(&kv_heads));
        put("ffn", Some(&ffn));
        put("vocab", Some(&vocab));
        put("batch", Some(&batch));
        put("seq", Some(&seq));
        put("rank", Some(&args.rank));
        put("dtype", Some(&args.dtype));
        put("activations", Some(&args.activations.name()));
        put("quantize", args.quantize.as_ref().map(|format| format as &dyn Display));
        put("matmul-precision", Some(&args.matmul_precision));
        put("steps", Some(&args.steps));
        put("warmup", Some(&args.warmup));
        put("seed", Some(&args.seed));
        put("threads", args.threads.as_ref().map(|threads| threads as &dyn Display));
        let switches =
            [("--plain", args.plain), ("--init-only", args.init_only), ("--checkpoint-blocks", args.checkpoint_blocks)];
        for (name, given) in switches {
            options.extend(given.then(|| name.to_owned()));
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use sorsa_models::WeightFormat;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: SpeedArgs,
    }

    fn parse<'a>(options: impl IntoIterator<Item = &'a str>) -> SpeedArgs {
        Line::try_parse_from(std::iter::once("sorsa").chain(options)).unwrap().args
    }

    #[test]
    fn a_child_gets_the_given_options_and_the_varied_one() {
        let given = parse([
            "--shape",
            "L",
            "--rank",
            "8",
            "--threads",
            "2",
            "--dtype",
            "bf16",
            "--quantize",
            "nf4",
            "--plain",
            "--heads",
            "6",
            "--scale",
        ]);
        for variation in variations(&given) {
            let options = variation.options(&given);
            let child = parse(options.iter().map(String::as_str));
            let (name, value) = (variation.varied.unwrap(), variation.value);
            let or = |this: &str, given: usize| if name == this { value } else { given };
            let (sizes, expected) = (child.sizes(), given.sizes());
            assert_eq!((sizes.dim, sizes.heads, sizes.kv_heads, sizes.ffn), (768, 6, 6, 2048));
            assert_eq!(sizes.batch, or("batch", expected.batch));
            assert_eq!(sizes.seq, or("seq", expected.seq));
            assert_eq!(sizes.layers, or("layers", expected.layers));
            assert_eq!((child.rank, child.threads), (or("rank", 8), Some(or("threads", 2))));
            assert_eq!((child.dtype, child.quantize), (WeightFormat::Bf16, Some("nf4".parse().unwrap())));
            assert!(child.plain && !child.init_only && child.is_single());
        }
        assert!(variations(&given).iter().filter(|variation| variation.varied == Some("threads")).count() == 2);
    }
}
