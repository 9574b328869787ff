//! Shows that a machine without NVIDIA's driver gets an error that says so, and never a panic: not
//! when a device is opened, and not when the error is printed. (cudarc panics at both.)
//!
//! In a binary of its own: it must not open the emulator.

use gfocal::{Error, cuda};

#[test]
fn no_driver_is_an_error_and_not_a_panic() {
    match cuda::driver_version() {
        Err(Error::NoDriver { reason }) => {
            assert!(!reason.is_empty());
            let expected = Error::NoDriver { reason: reason.clone() };
            // Twice: the first failure leaves nothing behind.
            for _ in 0..2 {
                assert_eq!(cuda::context(0).map(|_| ()), Err(expected.clone()));
                assert_eq!(cuda::context(1).map(|_| ()), Err(expected.clone()));
                assert_eq!(cuda::devices(), Err(expected.clone()));
                assert_eq!(cuda::driver_version(), Err(expected.clone()));
            }
            let text = format!("no CUDA driver ({reason}); install NVIDIA's driver, version 525 or newer");
            assert_eq!(expected.to_string(), text);
            assert!(format!("{expected:?}").contains("NoDriver"));
        }
        Ok(version) => {
            eprintln!("this machine has a driver, for CUDA {}.{}", version / 1000, version % 1000 / 10);
            assert!(version >= 12_000);
            let devices = cuda::devices().expect("the driver lists its devices");
            match cuda::context(0) {
                Ok(context) => assert_eq!(context.ordinal(), devices[0].ordinal),
                Err(error) => assert_eq!(error, Error::NoDevice { ordinal: 0, count: devices.len() }),
            }
        }
        Err(other) => panic!("{other}"),
    }
}
