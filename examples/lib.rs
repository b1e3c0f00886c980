//! Programs that embed Kraken: see the `.rs` files beside this one.
