pub fn run(_args: &crate::args::FinetuneArgs) -> anyhow::Result<()> { anyhow::bail!("not yet") }
