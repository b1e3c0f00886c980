//! What a host keeps on a disk of bounded size.

pub mod ledger;
