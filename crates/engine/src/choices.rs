//! What a caller chose for a region: does it make sense, and what follows from it here.
//!
//! *Locks*: none. *Threads*: whoever opens a region.

use crate::engine::Engine;
use crate::error::Error;
use crate::pager::opening;
use crate::region::{Delivery, Mode, OnError, Options};
use crate::residence::FEWEST_UNITS;
use crate::source::Source;
use crate::table::CHUNK;

/// The unit when neither caller nor source has a wish.
pub const DEFAULT_UNIT: usize = 64 << 10;

/// Check the options, settle what depends on the kernel, and answer the unit.
pub fn check(engine: &Engine, source: &dyn Source, options: &mut Options) -> Result<usize, Error> {
    let page = uffd::page_size();
    let invalid = |text: String| Err(Error::Invalid(text));
    if options.huge && options.unit != 0 && options.unit != CHUNK {
        return invalid(format!("huge=True means units of 2 MiB; unit={} was asked for", options.unit));
    }
    let unit = match options.unit {
        _ if options.huge => CHUNK,
        0 => {
            if source.preferred_unit() == 0 {
                DEFAULT_UNIT
            } else {
                source.preferred_unit()
            }
        }
        given => given,
    };
    if !unit.is_power_of_two() || unit < page || unit > 64 << 20 {
        return invalid(format!("unit must be a power of two from one page ({page}) to 64 MiB; {unit} is not"));
    }
    if options.delivery == Delivery::Signal && !source.signal_safe() {
        return invalid(format!(
            "delivery=\"signal\" runs inside a signal handler, where this source cannot: {}; use delivery=\"thread\"",
            source.signal_unsafe_reason()
        ));
    }
    if options.delivery == Delivery::Process {
        opening::check(engine, options)?;
    }
    check_budget(options, unit)?;
    if options.shared && options.on_error == OnError::Raise {
        return invalid(
            "a shared region shows its pages to other processes, and an error pattern must not get there; \
                        use on_error=\"abort\" with shared=True"
                .into(),
        );
    }
    if !engine.abilities.can_poison {
        options.on_error = OnError::Abort;
    }
    Ok(unit)
}

fn check_budget(options: &Options, unit: usize) -> Result<(), Error> {
    let fewest = FEWEST_UNITS * unit;
    let problem = match options.resident {
        0 => return Ok(()),
        _ if options.mode == Mode::Change => {
            "needs mode=\"r\": a page that may have been modified is never dropped".into()
        }
        _ if options.shared => "needs shared=False: pages of a memory file are not ours to drop".into(),
        bytes if bytes < fewest => {
            format!("{bytes} bytes are less than {} units of {unit} bytes: at least {fewest} are needed", FEWEST_UNITS)
        }
        _ => return Ok(()),
    };
    Err(Error::Invalid(format!("resident: {problem}")))
}
