//! `sorsa devices`: lists the devices of this build, and tries each.

use crate::device::{self, DeviceInfo, Kind, Status};
use crate::format::{Format, print, print_json};

/// Tries every device and prints one line for each.
pub fn run(format: Format) -> anyhow::Result<()> {
    let devices = device::list();
    match format {
        Format::Table => print(table(&devices).trim_end()),
        Format::Json => print_json(&devices),
    }
}

fn table(devices: &[DeviceInfo]) -> String {
    const HEAD: [&str; 6] = ["BACKEND", "INDEX", "KIND", "NAME", "FLOATS", "STATUS"];
    let rows: Vec<[String; 6]> = std::iter::once(HEAD.map(str::to_owned)).chain(devices.iter().map(row)).collect();
    let widths: [usize; 6] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn row(device: &DeviceInfo) -> [String; 6] {
    let kind = device.kind.map(|kind| match kind {
        Kind::Cpu => "cpu",
        Kind::Gpu => "gpu",
        Kind::Software => "software rasteriser",
    });
    let status = match &device.status {
        Status::Works => "works".to_owned(),
        Status::Fails(reason) => format!("fails: {reason}"),
        Status::NoDevice => "no device found".to_owned(),
        Status::NotInThisBuild => format!("not in this build: cargo xtask devices --backend {}", device.backend),
    };
    [
        device.backend.to_string(),
        device.index.map_or_else(|| "-".to_owned(), |index| index.to_string()),
        kind.unwrap_or("-").to_owned(),
        device.name.clone().unwrap_or_else(|| "-".to_owned()),
        if device.float_dtypes.is_empty() { "-".to_owned() } else { device.float_dtypes.join(" ") },
        status,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Backend;

    fn line(backend: Backend, status: Status) -> DeviceInfo {
        DeviceInfo {
            backend,
            index: Some(0),
            name: Some("card".into()),
            kind: Some(Kind::Gpu),
            target: None,
            float_dtypes: vec!["f32", "f16"],
            status,
        }
    }

    #[test]
    fn columns_line_up_and_a_failure_gives_its_reason() {
        let text =
            table(&[line(Backend::Flex, Status::Works), line(Backend::Vulkan, Status::Fails("no memory".into()))]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        let at = lines[0].find("STATUS").unwrap();
        assert_eq!(&lines[1][at..], "works");
        assert_eq!(&lines[2][at..], "fails: no memory");
    }

    #[test]
    fn json_puts_the_status_beside_the_other_fields() {
        let json = serde_json::to_value(line(Backend::Cuda, Status::Fails("no memory".into()))).unwrap();
        assert_eq!(json["backend"], "cuda");
        assert_eq!(json["status"], "fails");
        assert_eq!(json["reason"], "no memory");
    }
}
