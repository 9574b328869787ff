//! Shows that a gradient is multiplied by a number, on the CPU and on CUDA with the same bits, at any address and
//! of any length, and nothing beside it; that one that overflows sets the flag, wherever it is; and that with 1
//! nothing is read or written.

use gfocal::{Element, Error, bf16, cuda, f16, scale};
use support::gpu::{OnDevice, Poison};
use support::random::Random;
use support::tolerance::{Number, check_same_bits};
use support::{Buffer, Gpu, gpu};

/// Nothing, less than a vector, some vectors and ends, and more than all threads have at once.
const LENGTHS: [usize; 6] = [0, 1, 5, 33, 4097, 300_001];

fn on_cuda<T: OnDevice>(gpu: &Gpu, grad: &[T], offset: usize, by: f32) -> (Vec<T>, f32) {
    let (mut grad, by) = (Buffer::new(gpu, grad, offset), Buffer::new(gpu, &[by], 0));
    let mut flag = Buffer::new(gpu, &[0f32], 0);
    let launches = u64::from(!grad.view().is_empty());
    let call = || cuda::scale(&gpu.handle, &mut grad.view_mut(), &by.view(), Some(&mut flag.view_mut()));
    gpu.enqueued(launches, call).expect("a legal call");
    (grad.read(gpu), flag.read(gpu)[0])
}

fn any<T: OnDevice>() {
    let Some(gpu) = gpu() else { return };
    gpu.handle.prepare(cuda::scale_units(T::STORAGE)).expect("the kernel loads");
    let mut random = Random::new(7);
    for len in LENGTHS {
        let grad: Vec<T> = random.many(len, -4.0, 4.0).into_iter().map(T::from_f64).collect();
        for by in [1.0, 0.0, -0.3, 1.5e-5, f32::NAN] {
            let (mut want, mut want_flag) = (grad.clone(), [0.0]);
            scale(&mut want, by, Some(&mut want_flag)).expect("a legal call");
            for (i, (&got, &from)) in want.iter().zip(&grad).enumerate() {
                let product = T::from_f64(f64::from((from.to_f64() * f64::from(by)) as f32));
                assert!(got.bits() == product.bits() || by.is_nan(), "{i}: {from:?} * {by}");
            }
            assert_eq!(want_flag[0], f32::from(by.is_nan() && len > 0), "{len} times {by}");
            for offset in [0, 1, 3, 7] {
                let (got, flag) = on_cuda(&gpu, &grad, offset, by);
                let what = format!("{len} of {} at {offset} times {by}", T::NAME);
                if by.is_nan() {
                    assert!(got.iter().all(|x| x.to_f64().is_nan()), "{what}");
                } else {
                    check_same_bits(&what, &got, &want);
                }
                assert_eq!(flag, want_flag[0], "{what}");
            }
        }
    }
}

/// One that overflows, at the ends and anywhere in each of the vectors that a thread has on their way.
fn overflows<T: OnDevice>() {
    let Some(gpu) = gpu() else { return };
    let most = if T::NAME == "f16" { 60_000.0 } else { 3e38 };
    let few = [19, 1000].into_iter().flat_map(|len| [0, 5, len / 2, len - 1].map(|at| (len, at)));
    // Of four for each of the emulator's threads, from a multiple of 16 bytes on: 4096, or twice as many from compute
    // capability 8.0 on.
    let (vector, threads) = (16 / size_of::<T>(), 16 * 256);
    let places =
        [0, 1, 2, 3, 4, 6].into_iter().flat_map(|n| (0..vector).map(move |k| n * threads * vector + k));
    let many = places.map(|at| (8 * threads * vector + vector, vector - 3 + at));
    // The last vector is the first, the second, ... of its thread.
    let last = (1..9).map(|n| (n * threads - 5) * vector + vector).map(|len| (len, len - 4));
    for (len, at) in few.chain(many).chain(last) {
        let mut grad = vec![T::from_f64(0.25); len];
        grad[at] = T::from_f64(most);
        let (got, flag) = on_cuda(&gpu, &grad, 3, 2.0);
        assert!(flag == 1.0 && !got[at].to_f64().is_finite(), "{at} of {len} in {}", T::NAME);
        let mut flag = [0.0];
        scale(&mut grad, T::Loss::from_f64(2.0), Some(&mut flag)).expect("a legal call");
        check_same_bits("both", &got, &grad);
        assert_eq!(flag, [1.0]);
        let (mut again, by) = (Buffer::new(&gpu, &[T::from_f64(most)], 0), Buffer::new(&gpu, &[2f32], 0));
        cuda::scale(&gpu.handle, &mut again.view_mut(), &by.view(), None)
            .expect("a legal call without a flag");
        // What is not finite already is nothing to it, if there is nothing to do.
        assert_eq!(on_cuda(&gpu, &got, 3, 1.0).1, 0.0);
    }
}

macro_rules! each {
    ($($name:ident: $type:ty;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn any_length_and_address() {
                any::<$type>();
            }

            #[test]
            fn one_that_overflows() {
                overflows::<$type>();
            }
        }
    )*};
}
each! {
    in_f32: f32;
    in_f16: f16;
    in_bf16: bf16;
}

/// Poison is what the emulator and these tests know of: reading it would be seen.
#[test]
fn with_1_nothing_is_read_or_written() {
    let Some(gpu) = gpu() else { return };
    let mut grad = Buffer::<f32>::poisoned(&gpu, 100, 0);
    let (one, before) = (Buffer::new(&gpu, &[1f32], 0), grad.read(&gpu));
    cuda::scale(&gpu.handle, &mut grad.view_mut(), &one.view(), None).expect("a legal call");
    assert!(grad.read(&gpu).iter().zip(before).all(|(after, before)| after.bits() == before.bits()));
    assert!(grad.read(&gpu).iter().all(|x| x.is_poison()));
}

#[test]
fn in_f64_on_the_cpu() {
    let mut grad = [0.1, -1e200];
    let mut flag = [0.0];
    scale(&mut grad, 1.0 / 3.0, Some(&mut flag)).expect("a legal call");
    assert_eq!((grad, flag), ([0.1 * (1.0 / 3.0), -1e200 * (1.0 / 3.0)], [0.0]));
    scale(&mut grad, 1e200, Some(&mut flag)).expect("a legal call");
    assert_eq!((grad[1], flag), (f64::NEG_INFINITY, [1.0]));
    let error = scale(&mut grad, 2.0, Some(&mut [0.0; 2])).expect_err("two flags");
    assert!(matches!(error, Error::Length { tensor: "found_inf", actual: 2, expected: 1, .. }), "{error}");
}
