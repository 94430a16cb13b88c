#!/bin/sh
# Makes the keys of the test that ring cannot make. They sign nothing outside it.
set -eu
cd "$(dirname "$0")"
openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out rsa.pem
openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-521 -out p521.pem
# The forms of older openssl: PKCS #1 and SEC 1.
openssl rsa -in rsa.pem -traditional -out rsa_pkcs1.pem
openssl ecparam -name prime256v1 -genkey -noout -out p256_sec1.pem
openssl ecparam -name secp384r1 -genkey -noout -out p384_sec1.pem
