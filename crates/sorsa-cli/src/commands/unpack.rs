//! `sorsa unpack`: a model in a GGUF file becomes a Hugging Face folder.

use sorsa_checkpoint::WeightFormat;
use sorsa_checkpoint::gguf::GgufModel;
use sorsa_checkpoint::weights::ModelFolder;
use sorsa_report::report::bytes;

use crate::args::UnpackArgs;
use crate::exit::OrBadInput;
use crate::format::print;

pub fn run(args: &UnpackArgs) -> anyhow::Result<()> {
    let format: WeightFormat = args.dtype.parse().or_bad_input()?;
    let model = GgufModel::open(&args.file).or_bad_input()?;
    let folder = ModelFolder::create(&args.out).or_bad_input()?;
    model.unpack(&folder, format).or_bad_input()?;
    folder.commit()?;
    let numbers: usize = model.tensors().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
    print(format_args!(
        "{} tensors, {} of weights as {format} in {}",
        model.tensors().len(),
        bytes(format.bytes(numbers) as u64),
        args.out.display()
    ))
}
