import test from 'ava';
import {mergeRoots, parseIssued, verifyPair} from '../../../src/identity/certificate.ts';
import {generateKey} from '../../../src/identity/key.ts';
import {Secret} from '../../../src/log.ts';
import {createCa, era} from './test-ca.ts';

const now = new Date('2030-01-01T00:00:00Z');
const spiffeId = 'spiffe://cluster.local/ns/bar/sa/vm';
const expected = {now, spiffeId};
const past = {notBefore: new Date('2020-01-01'), notAfter: new Date('2029-12-31')};
const future = {notBefore: new Date('2030-01-02'), notAfter: new Date('2031-01-01')};

async function issued(uris: readonly string[] = [spiffeId], life = era) {
	const ca = await createCa();
	const key = await generateKey('ecdsa-p256');
	return {ca, key, leaf: await ca.issue(key.privateKey, uris, life)};
}

test('certificate › leaf and root, as a self-signed istiod answers', async t => {
	const {ca, key, leaf} = await issued();
	const pair = parseIssued([leaf, ca.pem], key.pem, expected);
	t.is(pair.spiffeId, spiffeId);
	t.is(pair.chainPem, leaf);
	t.deepEqual(pair.rootsPem, [ca.pem]);
	t.deepEqual(pair.warnings, []);
});

test('certificate › intermediates stay in the chain, roots do not', async t => {
	const ca = await createCa();
	const upper = await ca.intermediate();
	const lower = await upper.intermediate();
	const key = await generateKey('ecdsa-p256');
	const leaf = await lower.issue(key.privateKey, [spiffeId]);
	const pair = parseIssued([leaf, lower.pem, upper.pem, ca.pem], key.pem, expected);
	t.is(pair.chainPem, leaf + lower.pem + upper.pem);
	t.is(parseIssued([leaf + lower.pem + upper.pem + ca.pem, ca.pem], key.pem, expected).chainPem, pair.chainPem);
});

test('certificate › several roots are sorted, once each, and broken ones left out with a warning', async t => {
	const {ca, key, leaf} = await issued();
	const other = await createCa();
	const broken = '-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n';
	const {rootsPem, warnings} = parseIssued([leaf, other.pem + broken + ca.pem + other.pem], key.pem, expected);
	t.deepEqual(rootsPem, [ca.pem, other.pem].sort());
	t.deepEqual(warnings, ['trust bundle: block 2 is not a certificate, left out']);
});

test('certificate › that of another workload is refused, since nobody would accept it from us', async t => {
	for (const name of ['spiffe://cluster.local/ns/bar/sa/other', 'spiffe://cluster.local/ns/other/sa/vm']) {
		const {ca, key, leaf} = await issued([name]);
		const error = t.throws(() => parseIssued([leaf, ca.pem], key.pem, expected), {code: 'identity.issued_invalid'});
		t.true(error.message.includes(name));
	}
});

test('certificate › another trust domain than asked for is accepted with a warning, since istiod names by authenticator', async t => {
	const {ca, key, leaf} = await issued(['spiffe://other.domain/ns/bar/sa/vm']);
	const pair = parseIssued([leaf, ca.pem], key.pem, expected);
	t.is(pair.spiffeId, 'spiffe://other.domain/ns/bar/sa/vm');
	t.regex(pair.warnings[0]!, /names spiffe:\/\/other.domain.*asked for was spiffe:\/\/cluster.local/);
});

test('certificate › of several names the one asked for counts; names with commas and quotes do not confuse', async t => {
	const {ca, key, leaf} = await issued(['spiffe://td/x,URI:spiffe://evil/ns/a/sa/b', 'https://a/"b"', spiffeId]);
	t.is(parseIssued([leaf, ca.pem], key.pem, expected).spiffeId, spiffeId);
	t.is(parseIssued([leaf, ca.pem], key.pem, {now}).spiffeId, 'spiffe://td/x,URI:spiffe://evil/ns/a/sa/b');
});

test('certificate › one that is not valid yet is accepted with a warning: our clock may be behind', async t => {
	const {ca, key, leaf} = await issued([spiffeId], future);
	t.regex(parseIssued([leaf, ca.pem], key.pem, expected).warnings[0]!, /valid from 2030-01-02.*clock shows 2030-01-01/);
});

test('certificate › refuses what does not belong together', async t => {
	const {ca, key, leaf} = await issued();
	const other = await createCa();
	const refuse = (elements: readonly string[], message: RegExp, keyPem = key.pem) => {
		t.throws(() => parseIssued(elements, keyPem, expected), {code: 'identity.issued_invalid', message});
	};
	refuse([], /0 element/);
	refuse([leaf], /1 element/);
	refuse(['', ca.pem], /holds no certificate/);
	refuse([leaf, ''], /trust bundle holds no certificate/);
	refuse([leaf, 'x'.repeat(2 ** 21)], /too long/);
	refuse([leaf.replace(/[A-Z]{4}/, '****'), ca.pem], /certificate/);
	refuse([leaf, other.pem], /no root of the trust bundle issued "CN=root/);
	refuse([leaf, ca.pem], /for another key/, (await generateKey('ecdsa-p256')).pem);
	refuse([leaf, ca.pem], /for another key/, (await generateKey('rsa-2048')).pem);
	refuse([leaf, ca.pem], /private key cannot be read/, new Secret('rubbish'));
	refuse([ca.pem, leaf], /./);
	refuse([(await issued([])).leaf, ca.pem], /./);
});

test('certificate › refuses a leaf that has expired, and points at the clock', async t => {
	const {ca, key, leaf} = await issued([spiffeId], past);
	const error = t.throws(() => parseIssued([leaf, ca.pem], key.pem, expected), {message: /expired at 2029-12-31/})!;
	t.regex((error as {hint?: string}).hint!, /timedatectl/);
});

test('certificate › refuses a leaf without a SPIFFE ID', async t => {
	const {ca, key, leaf} = await issued(['https://example.com']);
	t.throws(() => parseIssued([leaf, ca.pem], key.pem, expected), {message: /no SPIFFE ID \(names: URI:https/});
});

test('certificate › refuses a chain through an expired or a non-CA certificate, or an expired root', async t => {
	const ca = await createCa();
	const key = await generateKey('ecdsa-p256');
	for (const options of [{life: past}, {isCa: false}]) {
		const middle = await ca.intermediate(options);
		const leaf = await middle.issue(key.privateKey, [spiffeId]);
		t.throws(() => parseIssued([leaf, middle.pem, ca.pem], key.pem, expected), {
			message: /no root of the trust bundle/,
		});
	}
	const old = await createCa(past);
	const leaf = await old.issue(key.privateKey, [spiffeId]);
	t.throws(() => parseIssued([leaf, old.pem], key.pem, expected), {message: /no root of the trust bundle/});
});

test('certificate › a root only by name, with another key, does not anchor', async t => {
	const {ca, key, leaf} = await issued();
	const impostor = await createCa(era, ca.certificate.subject);
	t.throws(() => parseIssued([leaf, impostor.pem], key.pem, expected), {message: /no root of the trust bundle/});
	t.notThrows(() => verifyPair({chainPem: leaf, rootsPem: impostor.pem + ca.pem, keyPem: key.pem}, expected));
});

test('certificate › hostile PEM text takes no time', t => {
	const started = performance.now();
	mergeRoots(
		['-----BEGIN CERTIFICATE-----'.repeat(30_000), '-----BEGIN CERTIFICATE-----' + 'A'.repeat(1_000_000)],
		() => {},
	);
	t.true(performance.now() - started < 2000);
});
