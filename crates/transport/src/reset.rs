//! How a server that was started again says that it knows nothing of a connection any more (RFC 9000, section 10.3).
//!
//! quinn draws the keys of connection ids and of reset tokens anew in every process, so that a client of a server that was killed
//! would wait for its idle timeout. Derived from the server's own key they outlive it: the first packet that reaches the new process
//! is answered with a token that the client knows, and the client connects again at once.

use quinn_proto::crypto::{CryptoError, HmacKey};
use quinn_proto::{ConnectionIdGenerator, EndpointConfig, HashedConnectionIdGenerator};
use std::sync::Arc;

const CONTEXT: &str = "cutlayer 2026-11 QUIC stateless reset";

/// The secret behind reset tokens.
struct ResetKey([u8; 32]);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(blake3::keyed_hash(&self.0, data).as_bytes());
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        // blake3's hashes compare in constant time.
        if blake3::keyed_hash(&self.0, data) == *signature { Ok(()) } else { Err(CryptoError) }
    }
}

/// Lets `config` be that of every process that has this secret.
pub(crate) fn outlive(config: &mut EndpointConfig, secret: &[u8]) {
    let key = blake3::derive_key(CONTEXT, secret);
    let ids = u64::from_le_bytes(std::array::from_fn(|place| blake3::keyed_hash(&key, b"connection ids").as_bytes()[place]));
    config.reset_key(Arc::new(ResetKey(key)));
    config.cid_generator(move || -> Box<dyn ConnectionIdGenerator> { Box::new(HashedConnectionIdGenerator::from_key(ids)) });
}
