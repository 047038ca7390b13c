//! What the service and the client share: the interfaces of `aidl/`, as Rust, and how they begin.

use rsbinder::{DEFAULT_MAX_BINDER_THREADS, ProcessState, hub};
use std::error::Error;
use std::time::{Duration, Instant};

rsbinder::include_aidl!("board");
pub use board::IBoard::{BnBoard, IBoard};
pub use board::ISubscriber::{BnSubscriber, ISubscriber};

/// What the service is registered as.
pub const NAME: &str = "board";

/// Where the service manager and other programs that are left as they are open the device.
pub const DEVICE: &str = rsbinder::DEFAULT_BINDER_PATH;

/// Nothing that is waited for here takes so long.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Opens the device, starts the threads that are called, and waits until a service manager answers.
pub fn start(device: &str) -> Result<(), Box<dyn Error>> {
    ProcessState::init(device, DEFAULT_MAX_BINDER_THREADS)
        .map_err(|error| format!("{device}: {error}; is fakebinderd running?"))?;
    ProcessState::start_thread_pool();
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = hub::default() {
        if Instant::now() > deadline {
            return Err(format!("no service manager on {device} ({error}): start rsb_hub").into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
