import {X509Certificate} from 'node:crypto';
import test, {type ExecutionContext} from 'ava';
import {typeUrl} from '../../../src/proto/types.ts';
import {type Sandbox, type SandboxOptions, startSandbox} from '../../../src/sandbox/index.ts';
import {makeCsr, openAds, requestCertificate, type Target, vmNode} from './client.ts';

const account = {namespace: 'bar', serviceAccount: 'vm'};

async function start(t: ExecutionContext, options: SandboxOptions = {}): Promise<{sandbox: Sandbox; target: Target}> {
	const sandbox = await startSandbox(options);
	t.teardown(() => sandbox.stop());
	return {sandbox, target: {address: sandbox.address, rootPem: sandbox.rootPem(), token: sandbox.issueToken(account)}};
}

async function join(
	target: Target,
	lifetimeSeconds?: number,
): Promise<{chain: string[]; certPem: string; keyPem: string}> {
	const {csrPem, keyPem} = makeCsr();
	const chain = await requestCertificate(target, csrPem, lifetimeSeconds);
	return {chain, certPem: chain.slice(0, -1).join(''), keyPem};
}

test('CA › a token buys a certificate for its service account, whatever the request says', async t => {
	const {sandbox, target} = await start(t);
	const {chain} = await join(target, 3600);
	t.is(chain.length, 2);
	t.is(chain[1], sandbox.rootPem());
	const leaf = new X509Certificate(chain[0]!);
	t.is(leaf.subjectAltName, 'URI:spiffe://cluster.local/ns/bar/sa/vm');
	t.true(leaf.verify(new X509Certificate(chain[1]!).publicKey));
	t.deepEqual(leaf.keyUsage, ['1.3.6.1.5.5.7.3.1', '1.3.6.1.5.5.7.3.2']);
	t.false(leaf.ca);
	const [from, to] = [Date.parse(leaf.validFrom), Date.parse(leaf.validTo)];
	t.true(Math.abs(Date.now() - 120_000 - from) < 5_000);
	t.is(to - from, 3_720_000);
	t.is(sandbox.counts.issuedByToken, 1);
});

const refusals: Record<string, (sandbox: Sandbox) => Partial<Target> | Promise<Partial<Target>>> = {
	'no token': () => ({token: undefined}),
	'a token past its end': sandbox => ({token: sandbox.issueToken({...account, expired: true})}),
	'a token for another audience': sandbox => ({token: sandbox.issueToken({...account, audience: 'vault'})}),
	'a token signed by somebody else': async () => {
		const other = await startSandbox();
		await other.stop();
		return {token: other.issueToken(account)};
	},
	'something that is not a token': () => ({token: 'aGVsbG8.d29ybGQ.IQ'}),
	'a cluster that istiod does not know': () => ({clusterId: 'elsewhere'}),
};
for (const [name, change] of Object.entries(refusals)) {
	test(`CA › refuses ${name} without saying why`, async t => {
		const {sandbox, target} = await start(t);
		const refused = {...target, ...(await change(sandbox))};
		await t.throwsAsync(join(refused), {message: '16 UNAUTHENTICATED: request authenticate failure'});
		t.is(sandbox.counts.issuedByToken, 0);
	});
}

test('CA › refuses what is not a signing request, and a life beyond 90 days', async t => {
	const {target} = await start(t);
	const text = 'CSR signing error (certificate signing request is not properly encoded)';
	await t.throwsAsync(requestCertificate(target, 'hello'), {message: `3 INVALID_ARGUMENT: ${text}`});
	const der = Buffer.from(makeCsr().csrPem.replace(/-----.*?-----/g, ''), 'base64');
	// The end of the signature.
	der[der.length - 1]! ^= 1;
	const swapped = `-----BEGIN CERTIFICATE REQUEST-----\n${der.toString('base64')}\n-----END CERTIFICATE REQUEST-----\n`;
	await t.throwsAsync(requestCertificate(target, swapped), {
		message: '3 INVALID_ARGUMENT: CSR signing error (failed to parse X.509 certificate signing request)',
	});
	await t.throwsAsync(join(target, 2161 * 3600), {
		message:
			/INVALID_ARGUMENT: CSR signing error \(requested TTL 2161h0m0s is greater than the max allowed TTL 2160h0m0s\)/,
	});
});

test('CA › a client certificate renews without any token', async t => {
	const {sandbox, target} = await start(t);
	const {certPem, keyPem} = await join(target);
	const renewed = await join({...target, token: undefined, certPem, keyPem});
	t.is(new X509Certificate(renewed.certPem).subjectAltName, 'URI:spiffe://cluster.local/ns/bar/sa/vm');
	t.is(sandbox.counts.issuedByCertificate, 1);
});

test('CA › an expired client certificate breaks the handshake, good token or not', async t => {
	const {sandbox, target} = await start(t);
	sandbox.setCertificateLifetimeMs(1);
	const {certPem, keyPem} = await join(target);
	sandbox.setCertificateLifetimeMs(undefined);
	while (Date.parse(new X509Certificate(certPem).validTo) >= Date.now() - 1_000) {
		await new Promise(resolve => setTimeout(resolve, 50));
	}
	await t.throwsAsync(join({...target, certPem, keyPem}), {message: /^14 UNAVAILABLE/});
	t.true(sandbox.counts.refusedHandshakes > 0);
	t.is(sandbox.counts.issuedByToken, 1);
});

test('CA › a client certificate from another mesh breaks the handshake', async t => {
	const {target} = await start(t);
	const {target: foreign} = await start(t);
	const {certPem, keyPem} = await join(foreign);
	await t.throwsAsync(join({...target, certPem, keyPem}), {message: /^14 UNAVAILABLE/});
});

test('CA › puts its intermediate between leaf and root when it has one', async t => {
	const {target} = await start(t, {hasIntermediate: true});
	const {chain, certPem, keyPem} = await join(target);
	t.is(chain.length, 3);
	const [leaf, intermediate, root] = chain.map(pem => new X509Certificate(pem));
	t.true(leaf!.verify(intermediate!.publicKey));
	t.true(intermediate!.verify(root!.publicKey));
	await t.notThrowsAsync(join({...target, certPem, keyPem, token: undefined}));
});

test('CA › a rotated root signs while the old one stays in the bundle, until it is dropped', async t => {
	const {sandbox, target} = await start(t);
	const old = await join(target);
	await sandbox.faults.rotateRoot();
	const next = await join(target);
	t.is(next.chain.at(-1)!.match(/BEGIN CERTIFICATE/g)?.length, 2);
	t.true(next.chain.at(-1)!.startsWith(old.chain.at(-1)!));
	t.false(new X509Certificate(next.certPem).verify(new X509Certificate(old.chain.at(-1)!).publicKey));
	await t.notThrowsAsync(join({...target, ...old, token: undefined}), 'old certificates still count');
	await sandbox.faults.dropOldRoot();
	const trusting = {...target, rootPem: sandbox.rootPem()};
	t.is(sandbox.rootPem().match(/BEGIN CERTIFICATE/g)?.length, 1);
	await t.throwsAsync(join({...trusting, ...old, token: undefined}), {message: /^14 UNAVAILABLE/});
	await t.notThrowsAsync(join({...trusting, certPem: next.certPem, keyPem: next.keyPem, token: undefined}));
	await t.throwsAsync(join(target), {message: /^14 UNAVAILABLE/}, 'the old root no longer vouches for the server');
});

test('server › a restart keeps the port and, asked for it, comes back with a CA nobody trusts', async t => {
	const {sandbox, target} = await start(t);
	const {port} = sandbox;
	await sandbox.faults.stop();
	await t.throwsAsync(join(target), {message: /^14 UNAVAILABLE/});
	await sandbox.faults.restart();
	t.is(sandbox.port, port);
	await t.notThrowsAsync(join(target));
	await sandbox.faults.restart({newCa: true});
	await t.throwsAsync(join(target), {message: /^14 UNAVAILABLE/});
	await t.notThrowsAsync(join({...target, rootPem: sandbox.rootPem()}));
});

test('server › refuses as told, per service', async t => {
	const {sandbox, target} = await start(t);
	sandbox.faults.refuse({ca: {code: 'internal', message: '100% wrong: é'}});
	await t.throwsAsync(join(target), {message: '13 INTERNAL: 100% wrong: é'});
	const ads = openAds(target, 'delta');
	ads.send({node: vmNode(account), type_url: typeUrl.cluster});
	t.truthy(await ads.next());
	ads.close();
	sandbox.faults.refuse({ca: undefined});
	await t.notThrowsAsync(join(target));
});

test('server › while silent it takes calls and answers them when it speaks again', async t => {
	const {sandbox, target} = await start(t);
	sandbox.faults.stopAnswering();
	let isAnswered = false;
	const joining = join(target).then(() => {
		isAnswered = true;
	});
	// Something else that needs the server, so that the silence is seen and not assumed.
	await t.throwsAsync(
		Promise.race([join(target), new Promise((_, reject) => setTimeout(() => reject(new Error('silent')), 300))]),
		{message: 'silent'},
	);
	t.false(isAnswered);
	sandbox.faults.resume();
	await joining;
	t.true(isAnswered);
});
