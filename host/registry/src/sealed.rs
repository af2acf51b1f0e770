//! Private keys as cosign keeps them: PKCS#8 sealed by NaCl's secretbox with the scrypt of a password, as JSON in PEM.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crypto_secretbox::aead::{Aead, KeyInit};
use serde::Deserialize;

/// The words that such a file begins with; the second are older.
const HEADS: [&str; 2] =
    ["BEGIN ENCRYPTED SIGSTORE PRIVATE KEY", "BEGIN ENCRYPTED COSIGN PRIVATE KEY"];
/// What a private key of cosign's costs to open, at most: it makes them with N = 2^15 to 2^17, r = 8, p = 1.
const SCRYPT_LOG_N_MAX: u32 = 18;
const SCRYPT_R_MAX: u32 = 8;
const SCRYPT_P_MAX: u32 = 4;
const NONCE: usize = 24;

/// Whether a file has a key of that kind.
pub(crate) fn is_one(pem: &str) -> bool {
    HEADS.iter().any(|head| pem.contains(head))
}

/// What the file says.
#[derive(Deserialize)]
struct Sealed {
    kdf: Kdf,
    cipher: Cipher,
    ciphertext: String,
}

#[derive(Deserialize)]
struct Kdf {
    name: String,
    params: Params,
    salt: String,
}

#[derive(Deserialize)]
struct Params {
    #[serde(rename = "N")]
    n: u64,
    r: u32,
    p: u32,
}

#[derive(Deserialize)]
struct Cipher {
    name: String,
    nonce: String,
}

/// The key in its own form, PKCS#8, or what is wrong with its file.
pub(crate) fn open(pem: &str, password: &str) -> Result<Vec<u8>, &'static str> {
    const DAMAGED: &str = "is a key of cosign's that is damaged";
    let decode = |text: &str| STANDARD.decode(text).map_err(|_| DAMAGED);
    let body: String =
        pem.lines().filter(|line| !line.starts_with("-----")).map(str::trim).collect();
    let sealed: Sealed = serde_json::from_slice(&decode(&body)?).map_err(|_| DAMAGED)?;
    let Params { n, r, p } = sealed.kdf.params;
    let log_n = n.checked_ilog2().filter(|log_n| n.is_power_of_two() && *log_n <= SCRYPT_LOG_N_MAX);
    let known = sealed.kdf.name == "scrypt" && sealed.cipher.name == "nacl/secretbox";
    let Some(log_n) = log_n.filter(|_| known && r <= SCRYPT_R_MAX && p <= SCRYPT_P_MAX) else {
        return Err("is a key of cosign's that is sealed in a way that is not known here");
    };
    let log_n = u8::try_from(log_n).map_err(|_| DAMAGED)?;
    let mut key = crypto_secretbox::Key::default();
    let params = scrypt::Params::new(log_n, r, p, key.len()).map_err(|_| DAMAGED)?;
    let salt = decode(&sealed.kdf.salt)?;
    scrypt::scrypt(password.as_bytes(), &salt, &params, &mut key).map_err(|_| DAMAGED)?;
    let nonce: [u8; NONCE] = decode(&sealed.cipher.nonce)?.try_into().map_err(|_| DAMAGED)?;
    let ciphertext = decode(&sealed.ciphertext)?;
    let opened =
        crypto_secretbox::XSalsa20Poly1305::new(&key).decrypt(&nonce.into(), ciphertext.as_slice());
    opened.map_err(|_| "has another password than COSIGN_PASSWORD says")
}
