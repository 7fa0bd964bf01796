pub fn run(_args: &crate::args::GenerateArgs) -> anyhow::Result<()> { anyhow::bail!("not yet") }
