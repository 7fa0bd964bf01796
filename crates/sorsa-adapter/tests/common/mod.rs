//! The device that the tests run on.

use burn::prelude::*;

/// Where the tests run: the CPU, or what `SORSA_TEST_BACKEND` names.
pub fn device() -> Device {
    match std::env::var("SORSA_TEST_BACKEND").as_deref() {
        Ok("wgpu") => wgpu(),
        Ok("flex") | Err(_) => Device::flex(),
        Ok(other) => panic!("SORSA_TEST_BACKEND should be flex or wgpu, found {other}"),
    }
}

#[cfg(feature = "wgpu")]
fn wgpu() -> Device {
    // Software rasterisers are listed too, and welcome here.
    let devices = Device::enumerate(burn::tensor::DeviceType::Wgpu).into_vec();
    devices.into_iter().next().expect("a wgpu device, such as Mesa's software rasteriser")
}

#[cfg(not(feature = "wgpu"))]
fn wgpu() -> Device {
    panic!("the tests were built without the feature wgpu")
}
