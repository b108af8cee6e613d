import './reflect.ts';
import {execFileSync} from 'node:child_process';
import * as x509 from '@peculiar/x509';
import test from 'ava';
import type {KeyType} from '../../../src/config/types.ts';
import {renderCsr} from '../../../src/identity/csr.ts';
import {generateKey} from '../../../src/identity/key.ts';

const spiffeId = 'spiffe://cluster.local/ns/bar/sa/vm';
const expected: [KeyType, RegExp, RegExp][] = [
	['ecdsa-p256', /ASN1 OID: prime256v1/, /ecdsa-with-SHA256/],
	['ecdsa-p384', /ASN1 OID: secp384r1/, /ecdsa-with-SHA384/],
	['rsa-2048', /\(2048 bit\)/, /sha256WithRSAEncryption/],
	['rsa-3072', /\(3072 bit\)/, /sha256WithRSAEncryption/],
	['rsa-4096', /\(4096 bit\)/, /sha256WithRSAEncryption/],
];
for (const [type, key, signature] of expected) {
	test(`csr › ${type}: OpenSSL verifies it and sees an empty organization and one critical URI name`, async t => {
		const csr = renderCsr(await generateKey(type), spiffeId);
		// OpenSSL exits 0 even when it does not verify, and says so on standard error.
		const text = execFileSync('sh', ['-c', 'openssl req -verify -noout -text 2>&1'], {input: csr, encoding: 'utf8'});
		t.regex(text, /self-signature verify OK/);
		t.regex(text, /Subject: O ?= ?$/m);
		t.regex(text, key);
		t.regex(text, signature);
		t.regex(text, /X509v3 Subject Alternative Name: critical\n\s+URI:spiffe:\/\/cluster.local\/ns\/bar\/sa\/vm\n/);
		t.is(text.match(/X509v3/g)?.length, 1, 'no other extension');
	});

	test(`csr › ${type}: a second library agrees`, async t => {
		const request = new x509.Pkcs10CertificateRequest(renderCsr(await generateKey(type), spiffeId));
		t.true(await request.verify());
		const names = new x509.SubjectAlternativeNameExtension(request.getExtension('2.5.29.17')!.rawData);
		t.true(names.critical);
		t.deepEqual(names.names.toJSON(), [{type: 'url', value: spiffeId}]);
	});
}

test('csr › the key never travels', async t => {
	const key = await generateKey('ecdsa-p256');
	const scalar = key.privateKey.export({format: 'jwk'}).d!;
	const der = Buffer.from(renderCsr(key, spiffeId).replace(/-----.*-----/g, ''), 'base64');
	t.is(der.indexOf(Buffer.from(scalar, 'base64url')), -1);
});
