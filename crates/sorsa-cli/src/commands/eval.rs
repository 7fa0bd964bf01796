pub fn run(_args: &crate::args::EvalArgs) -> anyhow::Result<()> { anyhow::bail!("not yet") }
