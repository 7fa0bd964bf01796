//! The choice of a device. No other file of the project names a backend.
//!
//! burn opens devices lazily: a GPU that is not there, or that cannot compile a kernel, panics at the first operation,
//! often on a background thread. So a device is looked up first, then made to compute something whose
//! answer is known, and only then handed out.

use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{anyhow, bail};
use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use sorsa_adapter::Placement;
use sorsa_kernels::Instructions;

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The CPU, in every build: the default, and the reference for the others.
    #[default]
    Flex,
    /// Any GPU, or a software rasteriser, through WGSL on Vulkan, Metal or DirectX.
    Wgpu,
    /// A GPU through SPIR-V on Vulkan.
    Vulkan,
    /// An NVIDIA GPU through CUDA.
    Cuda,
}

/// Whether a device is of the CPU backend. Only this backend has fused operations.
pub fn is_flex(device: &Device) -> bool {
    matches!(device.clone().without_autodiff().as_dispatch(), burn::backend::DispatchDevice::Flex(_))
}

impl Backend {
    const ALL: [Self; 4] = [Self::Flex, Self::Wgpu, Self::Vulkan, Self::Cuda];

    /// As written after `--backend`, in recipes and in summaries; the same as the cargo feature.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flex => "flex",
            Self::Wgpu => "wgpu",
            Self::Vulkan => "vulkan",
            Self::Cuda => "cuda",
        }
    }

    /// Where weights are decomposed: a GPU's stay there; a CPU's matrices are decomposed in parallel.
    pub fn svd_placement(self) -> Placement {
        match self {
            Self::Flex => Placement::Host,
            Self::Wgpu | Self::Vulkan | Self::Cuda => Placement::Device,
        }
    }

    fn in_this_build(self) -> bool {
        match self {
            Self::Flex => true,
            Self::Wgpu => cfg!(feature = "wgpu"),
            Self::Vulkan => cfg!(feature = "vulkan"),
            Self::Cuda => cfg!(feature = "cuda"),
        }
    }

    /// The devices of this backend, software rasterisers last.
    fn devices(self) -> Result<Vec<Device>, String> {
        let mut devices: Vec<Device> = quietly(|| {
            Ok(match self {
                Self::Flex => vec![Device::flex()],
                #[cfg(feature = "wgpu")]
                Self::Wgpu => Device::enumerate(burn::tensor::DeviceType::Wgpu).into_vec(),
                #[cfg(feature = "vulkan")]
                Self::Vulkan => Device::enumerate(burn::tensor::DeviceType::Vulkan).into_vec(),
                #[cfg(feature = "cuda")]
                Self::Cuda => Device::enumerate(burn::tensor::DeviceType::Cuda).into_vec(),
                #[allow(unreachable_patterns)] // all of them, if every feature is on
                _ => Vec::new(),
            })
        })?;
        devices.sort_by_key(|device| self.kind(device) == Kind::Software);
        Ok(devices)
    }

    fn kind(self, device: &Device) -> Kind {
        match self {
            Self::Flex => return Kind::Cpu,
            Self::Cuda => return Kind::Gpu,
            Self::Wgpu | Self::Vulkan => {}
        }
        #[cfg(any(feature = "wgpu", feature = "vulkan"))]
        {
            use burn::backend::{CubeDevice, DispatchDevice, WgpuDeviceKind};
            if let DispatchDevice::Cube(CubeDevice::Wgpu(device)) = device.as_dispatch() {
                return match device.kind {
                    WgpuDeviceKind::Cpu => Kind::Software,
                    _ => Kind::Gpu,
                };
            }
        }
        let _ = device;
        Kind::Gpu
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Backend {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Self> {
        Self::ALL.into_iter().find(|backend| backend.name() == name).ok_or_else(|| {
            anyhow!("unknown backend `{name}`: there are {}; {}", names(|_| true), what_this_build_has())
        })
    }
}

/// What a device is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The processor, through code compiled for it.
    Cpu,
    /// A graphics card, or a virtual one.
    Gpu,
    /// A GPU's driver imitated on the processor: right, but slow.
    Software,
}

/// Whether a device can be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "status", content = "reason")]
pub enum Status {
    /// It computed the right answer.
    Works,
    /// It did not; why, in one line.
    Fails(String),
    /// The backend is compiled in and finds no device.
    NoDevice,
    /// The backend is not compiled in.
    NotInThisBuild,
}

/// One line of `sorsa devices`.
#[derive(Debug, Clone, Serialize)]
pub struct DeviceInfo {
    /// The backend that reaches the device.
    pub backend: Backend,
    /// The device's place among its backend's, as [`open`] takes it.
    pub index: Option<usize>,
    /// What the device calls itself.
    pub name: Option<String>,
    /// What it is made of.
    pub kind: Option<Kind>,
    /// What its kernels are compiled for, as `ptx_sm90`.
    pub target: Option<String>,
    /// The floating-point types it computes in.
    pub float_dtypes: Vec<&'static str>,
    /// Whether it can be used.
    #[serde(flatten)]
    pub status: Status,
}

/// The device `index` of `backend`, after it has computed a known answer.
///
/// Real cards come before software rasterisers, so that index 0 is a rasteriser only if there is no card. The
/// device's default float type is f32 from here on.
///
/// # Errors
///
/// If the backend is not in this build, finds no device or fewer than `index + 1`, or if the device does not compute.
pub fn open(backend: Backend, index: usize) -> anyhow::Result<Device> {
    if !backend.in_this_build() {
        bail!("backend `{backend}` is not in this build: {}", what_this_build_has());
    }
    let devices =
        backend.devices().map_err(|reason| anyhow!("backend `{backend}` cannot list its devices: {reason}"))?;
    let Some(device) = devices.get(index) else {
        let found: Vec<String> = (0..).zip(&devices).map(|(i, device)| format!("{i} {}", describe(device).0)).collect();
        match found.as_slice() {
            [] => bail!("backend `{backend}` finds no device on this machine; `sorsa devices` lists what there is"),
            found => bail!("backend `{backend}` has no device {index}; found: {}", found.join(", ")),
        }
    };
    check(backend, device).map_err(|reason| {
        anyhow!("device {index} of backend `{backend}` ({}) does not compute: {reason}", describe(device).0)
    })?;
    Ok(device.clone())
}

/// Every device that any backend reaches, tried out; a backend without one has a line that says why.
pub fn list() -> Vec<DeviceInfo> {
    Backend::ALL.into_iter().flat_map(list_backend).collect()
}

fn list_backend(backend: Backend) -> Vec<DeviceInfo> {
    let none = |status| {
        vec![DeviceInfo {
            backend,
            index: None,
            name: None,
            kind: None,
            target: None,
            float_dtypes: Vec::new(),
            status,
        }]
    };
    if !backend.in_this_build() {
        return none(Status::NotInThisBuild);
    }
    match backend.devices() {
        Err(reason) => none(Status::Fails(reason)),
        Ok(devices) if devices.is_empty() => none(Status::NoDevice),
        Ok(devices) => devices.iter().enumerate().map(|(index, device)| inspect(backend, index, device)).collect(),
    }
}

fn inspect(backend: Backend, index: usize, device: &Device) -> DeviceInfo {
    const FLOATS: [(FloatDType, &str); 4] =
        [(FloatDType::F64, "f64"), (FloatDType::F32, "f32"), (FloatDType::F16, "f16"), (FloatDType::BF16, "bf16")];
    let (name, target) = describe(device);
    let supported = quietly(|| Ok(FLOATS.into_iter().filter(|(dtype, _)| device.supports_dtype(*dtype)).collect()));
    DeviceInfo {
        backend,
        index: Some(index),
        name: Some(name),
        kind: Some(backend.kind(device)),
        target,
        float_dtypes: supported.unwrap_or_else(|_| Vec::new()).into_iter().map(|(_, name)| name).collect(),
        status: check(backend, device).map_or_else(Status::Fails, |()| Status::Works),
    }
}

/// The device's own name, and what its kernels are compiled for.
fn describe(device: &Device) -> (String, Option<String>) {
    #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "cuda"))]
    if let Ok(Some(identity)) = quietly(|| Ok(device.identity())) {
        return (identity.name, Some(identity.fingerprint));
    }
    if *device == Device::flex() {
        let instructions = Instructions::used();
        return (format!("CPU, {}, {instructions}", std::env::consts::ARCH), Some(instructions.to_string()));
    }
    (format!("{device:?}"), None)
}

fn check(backend: Backend, device: &Device) -> Result<(), String> {
    // Mesa's rasterisers die of SPIR-V with a segmentation fault, which nothing here could catch. Where `vulkan`
    // is compiled in, `wgpu` takes that path too.
    if cfg!(feature = "vulkan") && backend.kind(device) == Kind::Software {
        return Err("software rasterisers need a build with `--backend wgpu` alone".into());
    }
    quietly(|| probe(device))
}

/// Compares `sum(exp(a b))` with its value in f64, for matrices that fill no tile evenly.
fn probe(device: &Device) -> Result<(), String> {
    const M: usize = 33;
    const K: usize = 40;
    const N: usize = 17;
    let a: Vec<f32> = (0..M * K).map(|i| (i * 7 % 13) as f32 / 32.0 - 0.1875).collect();
    let b: Vec<f32> = (0..K * N).map(|i| (i * 5 % 11) as f32 / 32.0 - 0.15625).collect();
    let cell = |i: usize, j: usize| (0..K).map(|k| f64::from(a[i * K + k]) * f64::from(b[k * N + j])).sum::<f64>();
    let expected: f64 = (0..M * N).map(|at| cell(at / N, at % N).exp()).sum();

    let on_device =
        |values: &[f32], shape: [usize; 2]| Tensor::<2>::from_data(TensorData::new(values.to_vec(), shape), device);
    let sum = on_device(&a, [M, K]).matmul(on_device(&b, [K, N])).exp().sum();
    let found = sum.try_into_vec_as::<f32>().map_err(|error| one_line(&format!("{error:?}")))?[0];
    // Tensor cores may round the operands of a product to 10 bits.
    if (f64::from(found) - expected).abs() <= 2e-3 * expected {
        Ok(())
    } else {
        Err(format!("sum(exp(a b)) is {found}, not {expected:.4}"))
    }
}

/// Runs `f` and turns a panic, on this thread or on one that the device keeps, into its first line; nothing is printed.
fn quietly<T>(f: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    // The hook is the process's: two threads that exchange it at once would leave the wrong one behind.
    static HOOK: Mutex<()> = Mutex::new(());
    let _alone = HOOK.lock().unwrap_or_else(PoisonError::into_inner);
    let first_panic = Arc::new(Mutex::new(None));
    let record = Arc::clone(&first_panic);
    let hook = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let message = info.payload_as_str().map_or_else(|| "a panic without a message".into(), one_line);
        record.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(message);
    }));
    let result = panic::catch_unwind(AssertUnwindSafe(f));
    panic::set_hook(hook);
    // The first panic is the cause; what the calling thread reports is often only that the device's thread is gone.
    let cause = || first_panic.lock().unwrap_or_else(PoisonError::into_inner).take();
    match result {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(reason)) => Err(cause().unwrap_or(reason)),
        Err(_) => Err(cause().unwrap_or_else(|| "a panic without a message".into())),
    }
}

fn one_line(message: &str) -> String {
    const LONGEST: usize = 200;
    message.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(LONGEST).collect()
}

fn names(keep: impl Fn(Backend) -> bool) -> String {
    Backend::ALL.into_iter().filter(|backend| keep(*backend)).map(Backend::name).collect::<Vec<_>>().join(", ")
}

fn what_this_build_has() -> String {
    format!(
        "this build has {}; `cargo xtask <command> --backend {}`, or `cargo build --features`, builds with another",
        names(Backend::in_this_build),
        names(|backend| !backend.in_this_build()).replace(", ", "|"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_opens_and_computes() {
        let device = open(Backend::Flex, 0).unwrap();
        assert_eq!(Tensor::<1>::ones([3], &device).sum().into_scalar::<f32>(), 3.0);
    }

    #[test]
    fn an_index_out_of_range_names_the_devices_there_are() {
        let error = open(Backend::Flex, 3).unwrap_err().to_string();
        assert!(error.contains("no device 3; found: 0 CPU"), "{error}");
    }

    #[test]
    fn a_backend_of_another_build_says_how_to_get_it() {
        for backend in Backend::ALL.into_iter().filter(|backend| !backend.in_this_build()) {
            let error = open(backend, 0).unwrap_err().to_string();
            assert!(error.contains("not in this build: this build has flex"), "{error}");
            assert!(error.contains("cargo xtask <command> --backend"), "{error}");
        }
    }

    #[test]
    fn names_parse_back_and_an_unknown_one_lists_them_all() {
        for backend in Backend::ALL {
            assert_eq!(backend.to_string().parse::<Backend>().unwrap(), backend);
        }
        let error = "metal".parse::<Backend>().unwrap_err().to_string();
        assert!(error.starts_with("unknown backend `metal`: there are flex, wgpu, vulkan, cuda"), "{error}");
    }

    #[test]
    fn a_panic_on_another_thread_is_the_reason_given() {
        let reason = quietly(|| {
            std::thread::spawn(|| panic!("no such\nadapter")).join().map_err(|_| "the thread is gone".to_owned())
        });
        assert_eq!(reason, Err::<(), _>("no such adapter".to_owned()));
    }

    #[test]
    fn every_backend_has_a_line_and_what_is_listed_as_working_opens() {
        let devices = list();
        for backend in Backend::ALL {
            assert!(devices.iter().any(|device| device.backend == backend), "{backend}");
        }
        for device in devices.iter().filter(|device| device.status == Status::Works) {
            open(device.backend, device.index.unwrap()).unwrap();
            assert!(device.float_dtypes.contains(&"f32"), "{device:?}");
        }
        assert_eq!(devices[0].status, Status::Works, "{:?}", devices[0]);
    }
}
