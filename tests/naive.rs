//! Shows that the kernels compute what kernels/naive/naive.cu does, a thread a row. There is no PTX of it, so that this
//! runs on the emulator, from the sources, always.

use std::ffi::{CString, c_void};

use gfocal::boxes::{BoxLoss, IouKind};
use gfocal::cuda::{self, Handle, check};
use gfocal::cudarc::driver::{DevicePtr, result};
use gfocal::head::{Normaliser, QualitySource};
use gfocal::{Reduction, bf16, f16};
use support::cuda::{Buffers, Layout};
use support::gpu::OnDevice;
use support::head::scenes::Recipe;
use support::head::{self, Form, PointsAt, Profile, Settings};
use support::random::Random;
use support::reference::integral;
use support::tolerance::Want;
use support::{Buffer, Case, Gpu, Loss, Pass, check_elements, check_with, expect};

/// The threads of a block; twin in naive.cu.
const BLOCK: u32 = 64;

fn gpu() -> Option<Gpu> {
    let emulator = match gfocal_emulator::install_sources() {
        Err(error) if gfocal_emulator::skip_allowed() => {
            eprintln!("skipped: {error}");
            return None;
        }
        installed => installed.expect("an emulator"),
    };
    let context = cuda::context(0).expect("the emulator");
    let stream = context.new_stream().expect("a stream");
    let handle = Handle::new(&stream).expect("a handle");
    Some(Gpu { context, stream, handle, emulator: Some(emulator) })
}

fn address<T>(gpu: &Gpu, buffer: &impl DevicePtr<T>) -> u64 {
    buffer.device_ptr(&gpu.stream).0
}

fn of<T: support::gpu::Poison>(gpu: &Gpu, buffer: &Buffer<T>) -> u64 {
    address(gpu, &buffer.view())
}

/// Two fields of 4 bytes.
fn pair(first: u32, second: u32) -> u64 {
    u64::from(second) << 32 | u64::from(first)
}

/// Runs a kernel of one parameter, of these words of 8 bytes, with a thread for each row.
fn launch<T: OnDevice>(gpu: &Gpu, kernel: &str, words: &[u64], rows: usize) {
    let (name, bytes) = (format!("{kernel}_{}", T::NAME), size_of_val(words));
    let ptx = format!(
        ".version 8.0\n.target sm_75\n.address_size 64\n.visible .entry {name}(\n\
         .param .align 8 .b8 {name}_param_0[{bytes}]\n)\n.maxntid {BLOCK}, 1, 1\n{{\n\tret;\n}}\n"
    );
    let (ptx, name) = (CString::new(ptx).expect("a text"), CString::new(name).expect("a name"));
    gpu.context.bind_to_thread().expect("the context is alive");
    let mut parameters = [words.as_ptr().cast_mut().cast::<c_void>()];
    let blocks = (rows as u32).div_ceil(BLOCK);
    // SAFETY: the image is a text that ends with NUL; the function takes one structure, which the emulator finds as
    // large as the kernel's, of these words; those that are pointers are of buffers that are alive.
    let launched = unsafe {
        let module = result::module::load_data(ptx.as_ptr().cast()).expect("the kernel's name");
        let function = result::module::get_function(module, name).expect("the kernel");
        let (grid, stream) = ((blocks, 1, 1), gpu.stream.cu_stream());
        result::launch_kernel(function, grid, (BLOCK, 1, 1), 0, stream, &mut parameters)
    };
    check("cuLaunchKernel", launched).expect("a launch");
    gpu.stream.synchronize().expect("the kernel ends well");
}

/// What the fast kernels must give, from what the naive one gave.
fn from_naive<T: OnDevice>(naive: &[T], truth: &[Option<Want>]) -> Vec<Option<Want>> {
    let want =
        |(naive, truth): (&T, &Option<Want>)| truth.map(|truth| Want { value: naive.to_f64(), ..truth });
    naive.iter().zip(truth).map(want).collect()
}

fn rows<T: OnDevice>(gpu: &Gpu) {
    let mut random = Random::new(7);
    let (labels, quality) = ([0i64, 79, 80, 3, 80, 41, 80], [0.7f32, 0.0, 0.3, 1.0, 0.5, 0.25, 0.9]);
    let sparse = Case::sparse([7, 80], &random.many(560, -9.0, 6.0), &labels, &quality);
    let target = random.many(70, 0.0, 16.0).iter().map(|&t| t as f32).collect::<Vec<_>>();
    let dfl = Case::dfl([70, 17], &random.many(70 * 17, -5.0, 5.0), &target);
    for case in [sparse.clone(), sparse.clone().with_beta(1.5), sparse.with_beta(0.0), dfl] {
        let (shape, case) = (case.shape, case.reduced(Reduction::None));
        let want = expect(&case.stored_as::<T>());
        let naive = Buffers::<T>::new(gpu, &case, &Layout::ALIGNED);
        let [logits, loss, grad] = [of(gpu, &naive.logits), of(gpu, &naive.loss), of(gpu, &naive.grad)];
        match case.loss {
            Loss::Dfl { .. } => {
                let words = [logits, of(gpu, &naive.target), loss, grad, shape[0] as u64, shape[1] as u64];
                launch::<T>(gpu, "naive_dfl", &words, shape[0]);
            }
            Loss::Sparse { beta, .. } => {
                let sizes = [shape[0] as u64, pair(shape[1] as u32, (beta as f32).to_bits())];
                let targets = [of(gpu, &naive.labels), of(gpu, &naive.quality)];
                let words = [&[logits][..], &targets, &[loss, grad], &sizes].concat();
                launch::<T>(gpu, "naive_qfl", &words, shape[0]);
            }
            Loss::Dense { .. } => unreachable!("there is no naive kernel for it"),
        }
        let naive = naive.outcome(gpu, Pass::ForwardBackward);
        check_with("naively", &case, Pass::ForwardBackward, &naive, &want);
        let fast = support::cuda::run::<T>(gpu, &case, Pass::ForwardBackward, &Layout::ALIGNED);
        let fast = fast.expect("a legal call");
        check_elements("loss", &fast.loss, &from_naive(&naive.loss, &want.loss));
        check_elements("gradient", &fast.grad, &from_naive(&naive.grad, &want.grad));
    }
}

fn expectations<T: OnDevice>(gpu: &Gpu) {
    let (shape, ones) = ([70, 17], [1.0; 70]);
    let logits: Vec<T> = Random::new(8).many(70 * 17, -5.0, 5.0).into_iter().map(T::from_f64).collect();
    let (mut expectations, mut grads) = (Vec::new(), Vec::new());
    for row in logits.chunks(17) {
        let (expectation, grad) = integral(&row.iter().map(|z| z.to_f64()).collect::<Vec<_>>());
        expectations.push(Some(Want::new(expectation, 1.0, true)));
        grads.extend(grad.into_iter().map(|grad| Some(Want::new(grad, 1.0, true))));
    }
    let input = Buffer::new(gpu, &logits, 0);
    let (result, grad) = (Buffer::<f32>::poisoned(gpu, 70, 0), Buffer::<T>::poisoned(gpu, 70 * 17, 0));
    let words = [of(gpu, &input), 0, of(gpu, &result), of(gpu, &grad), 70, 17];
    launch::<T>(gpu, "naive_integral", &words, 70);
    let (result, grad) = (result.read(gpu), grad.read(gpu));
    check_elements("naive expectation", &result, &expectations);
    check_elements("naive gradient", &grad, &grads);
    let fast = support::cuda::integral(gpu, &logits, shape, &ones, &Layout::ALIGNED).expect("a legal call");
    check_elements("expectation", &fast.0, &from_naive(&result, &expectations));
    check_elements("gradient", &fast.1, &from_naive(&grad, &grads));
}

#[test]
fn operations_on_rows() {
    let Some(gpu) = gpu() else { return };
    rows::<f32>(&gpu);
    rows::<f16>(&gpu);
    rows::<bf16>(&gpu);
    expectations::<f32>(&gpu);
    expectations::<f16>(&gpu);
    expectations::<bf16>(&gpu);
}

#[test]
fn boxes() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(9);
    // Some alike, some apart, some on a lattice, where sides meet.
    let mut some = |count: usize| -> Vec<f32> {
        let corners = |i: usize| {
            let [x, y, w, h] = [(0.0, 20.0), (0.0, 20.0), (1.0, 9.0), (1.0, 9.0)]
                .map(|(low, high)| random.between(low, high));
            [x, y, x + w, y + h]
                .map(|side| if i.is_multiple_of(3) { side.round() as f32 } else { side as f32 })
        };
        (0..count).flat_map(corners).collect()
    };
    let (pred, target) = (some(200), some(200));
    let [pred, target] = [&pred, &target].map(|boxes| Buffer::new(&gpu, boxes, 0));
    let [loss, grad, fast_loss, fast_grad] =
        [200, 800, 200, 800].map(|n| Buffer::<f32>::poisoned(&gpu, n, 0));
    let tensors = [&pred, &target, &loss, &grad].map(|buffer| of(&gpu, buffer));
    launch::<f32>(&gpu, "naive_boxes", &[&tensors[..], &[200, 1e-6f64.to_bits()]].concat(), 200);
    let (mut fast_loss, mut fast_grad) = (fast_loss, fast_grad);
    BoxLoss::new(IouKind::Giou)
        .forward_backward_cuda(
            &gpu.handle,
            &pred.view(),
            &target.view(),
            200,
            None,
            &mut fast_loss.view_mut(),
            &mut fast_grad.view_mut(),
        )
        .expect("a legal call");
    let wants = |naive: Buffer<f32>| -> Vec<Option<Want>> {
        naive.read(&gpu).iter().map(|&naive| Some(Want::new(naive.into(), 1.0, false))).collect()
    };
    check_elements("loss", &fast_loss.read(&gpu), &wants(loss));
    check_elements("gradient", &fast_grad.read(&gpu), &wants(grad));
}

fn step<T: OnDevice>(gpu: &Gpu) {
    let settings = Settings {
        normaliser: Normaliser::Nanodet,
        quality: QualitySource::Iou,
        ..Settings::of(Profile::Mmdetection)
    };
    let recipe = Recipe { sizes: vec![(6, 8, 8.0), (3, 4, 16.0)], ..Recipe::new(settings) };
    let on_grid = |scene: &head::Scene| {
        scene.levels.iter().all(|level| matches!(level.points, PointsAt::Grid(offset) if offset == 0.0))
    };
    let mut scene =
        (0..).map(|seed| recipe.scene(&mut Random::new(seed))).find(on_grid).expect("such a scene");
    (scene.grad_scale, scene.narrow) = (1.0, false);
    let all: usize = scene.levels.iter().map(|level| level.labels.len()).sum();
    let [quality, weight] = [(); 2].map(|()| gpu.stream.alloc_zeros::<f64>(all).expect("device memory"));

    let (mut first, mut levels) = (0, Vec::new());
    for level in &scene.levels {
        let (anchors, [cls, boxes]) =
            (level.labels.len(), [&level.cls, &level.boxes].map(|x| head::as_stored::<T>(x)));
        let grads = [cls.len(), boxes.len()].map(|length| Buffer::<T>::poisoned(gpu, length, 0));
        let [cls, boxes] = [cls, boxes].map(|logits| Buffer::new(gpu, &logits, 0));
        let targets = head::as_stored::<f32>(&level.box_targets);
        let (labels, targets) = (Buffer::new(gpu, &level.labels, 0), Buffer::new(gpu, &targets, 0));
        let losses = Buffer::<f32>::poisoned(gpu, 3 * anchors, 0);
        let inputs = [of(gpu, &cls), of(gpu, &boxes), of(gpu, &labels), of(gpu, &targets)];
        let between = [address(gpu, &quality), address(gpu, &weight)];
        let outputs = [of(gpu, &losses), of(gpu, &grads[0]), of(gpu, &grads[1])];
        let numbers = [anchors as u64, all as u64, first, level.stride.to_bits()];
        let sizes = [scene.classes, settings.bins, level.positions(), level.width].map(|size| size as u32);
        let sizes = [pair(sizes[0], sizes[1]), pair(sizes[2], sizes[3])];
        let words = [&inputs[..], &between, &outputs, &numbers, &sizes].concat();
        first += anchors as u64;
        levels.push((words, anchors, losses, grads, (cls, boxes, labels, targets)));
    }
    for kernel in ["naive_head_positives", "naive_head_losses"] {
        levels.iter().for_each(|level| launch::<T>(gpu, kernel, &level.0, level.1));
    }

    let truth = head::expect(&scene.stored_as::<T>());
    let fast = head::cuda::run::<T>(gpu, &scene, Form::Nchw, 0, Pass::ForwardBackward).expect("a legal call");
    head::check("fast", Pass::ForwardBackward, &fast, &truth);
    for (i, (_, _, losses, grads, _)) in levels.iter().enumerate() {
        let losses = losses.read(gpu);
        for kind in 0..3 {
            let sum: f64 = losses.iter().skip(kind).step_by(3).map(|&loss| f64::from(loss)).sum();
            let want = truth.losses[3 * i + kind].map(|truth| Want { value: sum, ..truth });
            let what = format!("level {i}, loss {kind}");
            support::check_reduced(&what, fast.losses[3 * i + kind], &want.expect("it is specified"));
        }
        for (tensor, grad) in grads.iter().enumerate() {
            let (naive, truth) = (grad.read(gpu), &truth.grads[i][tensor]);
            let what = format!("level {i}, gradient {tensor}");
            check_elements(&what, &naive, truth);
            check_elements(&what, &fast.grads[i][tensor], &from_naive(&naive, truth));
        }
    }
}

#[test]
fn a_step_of_the_head() {
    let Some(gpu) = gpu() else { return };
    step::<f32>(&gpu);
    step::<f16>(&gpu);
    step::<bf16>(&gpu);
}
