//! `gfocal info`.

use std::fmt::Write;
use std::time::Instant;

use gfocal::cuda::{self, DeviceInfo, Storage, Units};
use serde::Serialize;

use crate::args::InfoArgs;
use crate::device::{Device, describe, smallest};
use crate::error::Result;
use crate::report::json;
use crate::terminal;

#[derive(Serialize)]
struct Info {
    version: &'static str,
    kernels: Kernels,
    driver: Driver,
    devices: Vec<Gpu>,
    auto: Auto,
}

#[derive(Serialize)]
struct Kernels {
    provenance: String,
    compiled_at_build_time: bool,
    nvrtc_release: &'static str,
}

#[derive(Serialize)]
struct Driver {
    /// The CUDA version that it supports.
    cuda_version: Option<String>,
    error: Option<String>,
}

#[derive(Serialize)]
struct Gpu {
    device: String,
    name: String,
    compute_capability: String,
    multiprocessors: u32,
    memory: usize,
    /// Which kernels it would take, best first.
    takes: Vec<String>,
    /// Why it cannot be used.
    error: Option<String>,
    #[serde(skip)]
    description: String,
}

#[derive(Serialize)]
struct Auto {
    device: String,
    reason: String,
    /// The kernels that were loaded for it.
    images: Vec<String>,
    /// How long loading took.
    seconds: Option<f64>,
}

/// There is always an answer: that there is no driver is one.
pub fn run(args: &InfoArgs) -> Result<()> {
    let info = Info::collect(args.load);
    terminal::print(&if args.json { json(&info) + "\n" } else { info.text() })
}

impl Info {
    fn collect(load: bool) -> Info {
        let provenance = cuda::provenance();
        let (version, devices) = (cuda::driver_version(), cuda::devices());
        // That kernels load is the proof that the device can be used; all of them take long the first time.
        let start = Instant::now();
        let (device, reason) = Device::auto(if load { Units::all(&Storage::ALL) } else { smallest() });
        let seconds = matches!(device, Device::Cuda(_)).then(|| start.elapsed().as_secs_f64());
        let images = match &device {
            Device::Cpu => Vec::new(),
            Device::Cuda(cuda) => cuda.handle.kernels().images(),
        };
        Info {
            version: env!("CARGO_PKG_VERSION"),
            kernels: Kernels {
                provenance: provenance.to_string(),
                compiled_at_build_time: provenance.compiled_at_build_time(),
                nvrtc_release: provenance.nvrtc_release(),
            },
            driver: Driver {
                cuda_version: version.as_ref().ok().map(|v| format!("{}.{}", v / 1000, v % 1000 / 10)),
                error: version.err().or(devices.as_ref().err().cloned()).map(|error| error.to_string()),
            },
            devices: devices.unwrap_or_default().iter().map(Gpu::new).collect(),
            auto: Auto { device: device.name(), reason, images, seconds },
        }
    }

    fn text(&self) -> String {
        let mut text = format!("gfocal   {}\nkernels  {}\n", self.version, self.kernels.provenance);
        let version = self.driver.cuda_version.as_ref().map(|version| format!("for CUDA {version}"));
        let driver: Vec<String> = version.into_iter().chain(self.driver.error.clone()).collect();
        let _ = writeln!(text, "driver   {}", driver.join("; "));
        if self.devices.is_empty() {
            text += "devices  none\n";
        }
        for (i, gpu) in self.devices.iter().enumerate() {
            let name = if i == 0 { "devices" } else { "" };
            let error = gpu.error.as_ref().map(|error| format!(" ({error})")).unwrap_or_default();
            let _ = writeln!(text, "{name:7}  {}: {}{error}", gpu.device, gpu.description);
            let _ = writeln!(text, "         takes {}", gpu.takes.join("; "));
        }
        let _ = writeln!(text, "auto     chooses {}: {}", self.auto.device, self.auto.reason);
        for image in &self.auto.images {
            let _ = writeln!(text, "         loaded {image}");
        }
        if let Some(seconds) = self.auto.seconds {
            let _ = writeln!(text, "         in {seconds:.3} s, with the context");
        }
        text
    }
}

impl Gpu {
    fn new(device: &DeviceInfo) -> Gpu {
        let capability = device.compute_capability;
        Gpu {
            device: format!("cuda:{}", device.ordinal),
            name: device.name.clone(),
            compute_capability: format!("{}.{}", capability / 10, capability % 10),
            multiprocessors: device.multiprocessors,
            memory: device.memory,
            takes: cuda::images_for(device).unwrap_or_default(),
            error: device.usable().err().map(|error| error.to_string()),
            description: describe(device),
        }
    }
}
