pub fn run(_args: &crate::args::MergeArgs) -> anyhow::Result<()> { anyhow::bail!("not yet") }
