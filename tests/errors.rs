//! Shows what the errors say, word for word, and that both backends give the same one for the
//! same mistake, before anything is written.

use gfocal::cuda;
use gfocal::{AvgPolicy, DistributionFocalLoss, Error, QualityFocalLoss, Reduction, f16, integral};
use support::cuda::{Buffers, Layout};
use support::{Buffer, Case, Gpu, Pass, cpu, gpu};

/// The error of a wrong case: the same on both backends in all passes.
#[track_caller]
fn error(gpu: &Option<Gpu>, case: &Case) -> String {
    let text = cpu::run::<f32>(case, Pass::ForwardBackward).expect_err("a wrong call").to_string();
    for pass in Pass::ALL {
        assert_eq!(cpu::run::<f16>(case, pass).expect_err("a wrong call").to_string(), text, "{pass:?}");
        let Some(gpu) = gpu else { continue };
        let mut buffers = Buffers::<f32>::new(gpu, case, &Layout::ALIGNED);
        assert_eq!(
            buffers.call(gpu, case, pass).expect_err("a wrong call").to_string(),
            text,
            "{pass:?} on CUDA"
        );
        let untouched = buffers.loss.read(gpu).iter().chain(&buffers.grad.read(gpu)).all(|x| x.is_nan());
        assert!(untouched, "a call that failed wrote something");
    }
    text
}

fn sparse() -> Case {
    Case::sparse([4, 3], &[0.5; 12], &[0, 1, 2, 3], &[0.5; 4])
}

fn dense() -> Case {
    Case::dense([4, 3], &[0.5; 12], &[0.5; 12])
}

fn dfl() -> Case {
    Case::dfl([4, 3], &[0.5; 12], &[0.5; 4])
}

#[test]
fn lengths() {
    let gpu = gpu();
    let with = |change: fn(&mut support::Options)| dfl().reduced(Reduction::None).with(change);
    let wrong = [
        (Case { logits: vec![0.5; 11], ..sparse() }, "logits has 11 elements, logits [4, 3] needs 12"),
        (
            Case::sparse([4, 3], &[0.5; 12], &[0; 5], &[0.5; 4]),
            "labels has 5 elements, logits [4, 3] needs 4",
        ),
        (Case::sparse([4, 3], &[0.5; 12], &[0; 4], &[]), "quality has 0 elements, logits [4, 3] needs 4"),
        (Case { logits: vec![0.5; 13], ..dense() }, "logits has 13 elements, logits [4, 3] needs 12"),
        (Case::dense([4, 3], &[0.5; 12], &[0.5; 4]), "target has 4 elements, logits [4, 3] needs 12"),
        (Case { logits: vec![], ..dfl() }, "logits has 0 elements, logits [4, 3] needs 12"),
        (Case::dfl([4, 3], &[0.5; 12], &[0.5; 12]), "target has 12 elements, logits [4, 3] needs 4"),
        (with(|options| options.weight = Some(vec![1.0; 3])), "weight has 3 elements, logits [4, 3] needs 4"),
        (
            with(|options| options.upstream = Some(vec![1.0; 12])),
            "upstream has 12 elements, logits [4, 3] needs 4",
        ),
        (
            sparse().with_elements(|elements| elements.class_weights = Some(vec![1.0; 4])),
            "class_weights has 4 elements, logits [4, 3] needs 3",
        ),
        (
            dense().with_elements(|elements| elements.element_weights = Some(vec![1.0; 4])),
            "element_weights has 4 elements, logits [4, 3] needs 12",
        ),
    ];
    for (case, text) in wrong {
        assert_eq!(error(&gpu, &case), text);
    }
}

#[test]
fn lengths_of_outputs() {
    let gpu = gpu();
    let (qfl, logits) = (QualityFocalLoss::default(), [0.5f32; 12]);
    // Length of the loss, of the gradient and of found_inf, and what is said.
    let wrong = [
        (4, 12, 1, "loss has 4 elements, logits [4, 3] needs 1"),
        (0, 12, 1, "loss has 0 elements, logits [4, 3] needs 1"),
        (1, 4, 1, "grad has 4 elements, logits [4, 3] needs 12"),
        (1, 12, 2, "found_inf has 2 elements, logits [4, 3] needs 1"),
    ];
    for (losses, grads, flags, text) in wrong {
        let (mut loss, mut grad, mut flag) = (vec![7.0f32; losses], vec![7.0f32; grads], vec![7.0f32; flags]);
        let call = qfl.cpu(&logits, [4, 3], &[0i64, 1, 2, 3], &[0.5; 4]).found_inf(&mut flag);
        assert_eq!(call.forward_backward(&mut loss, &mut grad).expect_err("a wrong call").to_string(), text);
        assert!(
            loss.iter().chain(&grad).chain(&flag).all(|&x| x == 7.0),
            "a call that failed wrote something"
        );
        let Some(gpu) = &gpu else { continue };
        let mut buffers = Buffers::<f32>::new(gpu, &sparse(), &Layout::ALIGNED);
        let (mut loss, mut grad) = (Buffer::poisoned(gpu, losses, 0), Buffer::poisoned(gpu, grads, 0));
        let (mut flag, logits) = (Buffer::poisoned(gpu, flags, 0), buffers.logits.view());
        let (labels, quality, mut flag) = (buffers.labels.view(), buffers.quality.view(), flag.view_mut());
        let call = qfl
            .cuda(&gpu.handle, &logits, [4, 3], &labels, &quality)
            .found_inf(&mut flag)
            .status(&mut buffers.status);
        let result = call.forward_backward(&mut loss.view_mut(), &mut grad.view_mut());
        assert_eq!(result.expect_err("a wrong call").to_string(), text);
    }
    // `none` needs as many losses as rows.
    let call = qfl.cpu(&logits, [4, 3], &[0i64, 1, 2, 3], &[0.5; 4]).reduction(Reduction::None);
    let text = call.forward(&mut [0.0]).expect_err("a wrong call").to_string();
    assert_eq!(text, "loss has 1 elements, logits [4, 3] needs 4");
}

#[test]
fn lengths_of_device_scalars() {
    let Some(gpu) = gpu() else { return };
    let mut buffers = Buffers::<f32>::new(&gpu, &sparse(), &Layout::ALIGNED);
    let (logits, labels, quality) = (buffers.logits.view(), buffers.labels.view(), buffers.quality.view());
    let two = Buffer::new(&gpu, &[1.0f32, 2.0], 0);
    let two = two.view();
    let qfl = QualityFocalLoss::default();
    let call = || qfl.cuda(&gpu.handle, &logits, [4, 3], &labels, &quality);
    let by = Reduction::MeanBy { avg_factor: cuda::Scalar::from(&two), policy: AvgPolicy::Exact };
    let result = call().reduction(by).forward(&mut buffers.loss.view_mut());
    assert_eq!(result.expect_err("wrong").to_string(), "avg_factor has 2 elements, logits [4, 3] needs 1");
    let result = call().grad_scale(&two).backward(&mut buffers.grad.view_mut());
    assert_eq!(result.expect_err("wrong").to_string(), "grad_scale has 2 elements, logits [4, 3] needs 1");
}

#[test]
fn shapes() {
    let gpu = gpu();
    let shaped = |case: Case, shape| Case { shape, ..case };
    let wrong = [
        (shaped(sparse(), [4, 0]), "logits [4, 0] has 0 classes, it must have 1 to 2147483647"),
        (shaped(dense(), [0, 0]), "logits [0, 0] has 0 classes, it must have 1 to 2147483647"),
        (shaped(dfl(), [4, 1]), "logits [4, 1] has 1 bins, it must have 2 to 2147483647"),
        (
            shaped(dfl(), [1, 1 << 31]),
            "logits [1, 2147483648] has 2147483648 bins, it must have 2 to 2147483647",
        ),
        (
            shaped(sparse(), [usize::MAX, 2]),
            "logits [18446744073709551615, 2] has more elements than memory can address",
        ),
    ];
    for (case, text) in wrong {
        assert_eq!(error(&gpu, &case), text);
    }
}

#[test]
fn options() {
    let gpu = gpu();
    let by = |avg_factor, policy| Reduction::MeanBy { avg_factor, policy };
    let scaled = |scale| sparse().with(|options| options.grad_scale = scale);
    let wrong = [
        (sparse().with_beta(f64::NAN), "beta is NaN, it must be from 0 to 10^6"),
        (dense().with_beta(-0.5), "beta is -0.5, it must be from 0 to 10^6"),
        (sparse().with_beta(2e6), "beta is 2000000, it must be from 0 to 10^6"),
        (
            sparse().with(|options| options.loss_weight = f64::INFINITY),
            "loss_weight is inf, it must be a finite number",
        ),
        (
            dfl().with(|options| options.loss_weight = f64::NAN),
            "loss_weight is NaN, it must be a finite number",
        ),
        (
            sparse().with_elements(|elements| elements.alpha = Some(1.25)),
            "alpha is 1.25, it must be from 0 to 1",
        ),
        (
            dense().with_elements(|elements| elements.alpha = Some(f64::NAN)),
            "alpha is NaN, it must be from 0 to 1",
        ),
        (dfl().with_target_eps(-0.1), "target_eps is -0.1, it must be a finite number, 0 or more"),
        (dfl().with_target_eps(2.5), "target_eps is 2.5, it must be at most the number of bins less one"),
        (scaled(f64::NAN), "grad_scale is NaN, it must be a finite number"),
        (scaled(f64::NEG_INFINITY), "grad_scale is -inf, it must be a finite number"),
        (
            sparse().reduced(by(-1.0, AvgPolicy::Eps)),
            "the average factor is -1, it must be a finite number, 0 or more",
        ),
        (
            dfl().reduced(by(f64::NAN, AvgPolicy::Exact)),
            "the average factor is NaN, it must be a finite number, 0 or more",
        ),
        (
            dense().reduced(by(1.0, AvgPolicy::AtLeast(0.0))),
            "the least average factor is 0, it must be a finite number above 0",
        ),
        (
            sparse().with(|options| options.upstream = Some(vec![1.0; 4])),
            "an upstream gradient for each row goes with Reduction::None; for a reduced loss give the scalar to grad_scale",
        ),
    ];
    for (case, text) in wrong {
        assert_eq!(error(&gpu, &case), text);
    }
    // Legal limits.
    for case in [sparse().with_beta(0.0), sparse().with_beta(1e6), dfl().with_target_eps(2.0)] {
        assert!(cpu::run::<f64>(&case, Pass::ForwardBackward).is_ok());
    }
    let typed = DistributionFocalLoss::new(-1.0).expect_err("a negative eps");
    assert_eq!(
        typed,
        Error::InvalidOption { option: "target_eps", value: -1.0, rule: "a finite number, 0 or more" }
    );
}

#[test]
fn the_integral() {
    let gpu = gpu();
    let (logits, upstream) = ([0.5f32; 8], [1.0f32; 2]);
    let forward = |shape, expectations| integral::forward(&logits, shape, &mut vec![0.0; expectations]);
    let backward =
        |upstream: &[f32], grads| integral::backward(&logits, [2, 4], upstream, &mut vec![0.0f32; grads]);
    let wrong = [
        (forward([2, 3], 2), "logits has 8 elements, logits [2, 3] needs 6"),
        (forward([8, 1], 8), "logits [8, 1] has 1 bins, it must have 2 to 2147483647"),
        (forward([2, 4], 8), "expectation has 8 elements, logits [2, 4] needs 2"),
        (backward(&upstream[..1], 8), "upstream has 1 elements, logits [2, 4] needs 2"),
        (backward(&upstream, 2), "grad has 2 elements, logits [2, 4] needs 8"),
    ];
    for (result, text) in wrong {
        assert_eq!(result.expect_err("a wrong call").to_string(), text);
    }
    let Some(gpu) = gpu else { return };
    let (logits, upstream) = (Buffer::new(&gpu, &logits, 0), Buffer::new(&gpu, &upstream, 0));
    let (mut three, mut eight) = (Buffer::<f32>::poisoned(&gpu, 3, 0), Buffer::<f32>::poisoned(&gpu, 8, 0));
    let result = integral::forward_cuda(&gpu.handle, &logits.view(), [2, 4], &mut three.view_mut());
    assert_eq!(result.expect_err("wrong").to_string(), "expectation has 3 elements, logits [2, 4] needs 2");
    let backward = |shape, grad: &mut Buffer<f32>| {
        integral::backward_cuda(&gpu.handle, &logits.view(), shape, &upstream.view(), &mut grad.view_mut())
    };
    let text = backward([2, 4], &mut three).expect_err("wrong").to_string();
    assert_eq!(text, "grad has 3 elements, logits [2, 4] needs 8");
    let text = backward([4, 2], &mut eight).expect_err("wrong").to_string();
    assert_eq!(text, "upstream has 2 elements, logits [4, 2] needs 4");
}

#[test]
fn devices() {
    let Some(_gpu) = gpu() else { return };
    let count = cuda::devices().expect("a driver").len();
    let text = cuda::context(count + 7).expect_err("no such device").to_string();
    assert_eq!(
        text,
        format!("there is no CUDA device {}: the driver sees {count}, counted from 0", count + 7)
    );
}

#[test]
fn buffers_of_another_device() {
    let Some(gpu) = gpu() else { return };
    if cuda::devices().expect("a driver").len() < 2 {
        eprintln!("skipped: this needs two devices");
        return;
    }
    let other = cuda::context(1).expect("a second device").default_stream();
    let far = other.alloc_zeros::<f32>(12).expect("memory of the second device");
    let mut far_loss = other.alloc_zeros::<f32>(1).expect("memory of the second device");
    gpu.context.bind_to_thread().expect("the context is alive");
    let mut buffers = Buffers::<f32>::new(&gpu, &sparse(), &Layout::ALIGNED);
    let (logits, labels, quality) = (buffers.logits.view(), buffers.labels.view(), buffers.quality.view());
    let (qfl, shape) = (QualityFocalLoss::default(), [4, 3]);
    let mut loss = buffers.loss.view_mut();
    let weight = far.slice(..4);
    let errors = [
        ("logits", qfl.cuda(&gpu.handle, &far, shape, &labels, &quality).forward(&mut loss)),
        ("quality", qfl.cuda(&gpu.handle, &logits, shape, &labels, &weight).forward(&mut loss)),
        (
            "weight",
            qfl.cuda(&gpu.handle, &logits, shape, &labels, &quality).weight(&weight).forward(&mut loss),
        ),
        ("loss", qfl.cuda(&gpu.handle, &logits, shape, &labels, &quality).forward(&mut far_loss)),
        ("the stream", gpu.handle.on(&other).map(|_| ())),
    ];
    for (tensor, result) in errors {
        let error = result.expect_err("another context");
        assert_eq!(
            error.to_string(),
            format!(
                "{tensor} lives on device 1, in another CUDA context than the handle's stream on device 0; \
                 copy it there, or make a handle for its stream"
            )
        );
    }
}
