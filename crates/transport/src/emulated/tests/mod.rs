//! The model in virtual time, and the emulator on real sockets.

mod model;
mod sockets;
