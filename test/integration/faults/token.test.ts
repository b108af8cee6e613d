import {rm, writeFile} from 'node:fs/promises';
import {join} from 'node:path';
import anyTest, {type TestFn} from 'ava';
import {complaints, emptyState, joinedState, listFiles, listKept, makeWorld, untilClosed, type World} from './world.ts';

const test = anyTest as TestFn<{world: World}>;

test.beforeEach(async t => {
	t.context.world = await makeWorld();
});
test.afterEach(t => t.context.world.checkSecrets(t));
test.afterEach.always(t => t.context.world.end());

interface Case {
	readonly title: string;
	/** The token that lies there; undefined for none. */
	readonly token: (world: World) => string | Buffer | undefined;
	readonly code: string;
	readonly reason: RegExp;
}

/** Seen without asking the control plane. */
const unusable: readonly Case[] = [
	{
		title: 'a missing token',
		token: () => undefined,
		code: 'identity.token_missing',
		reason: /^locked out: there is no certificate, and read token \S+\/istio-token: no such file$/,
	},
	{
		title: 'an empty token',
		token: () => '\n',
		code: 'identity.token_empty',
		reason: /^locked out: .*read token \S+\/istio-token: it is empty$/,
	},
	{
		title: 'a binary file for a token',
		token: () => Buffer.from([0x7f, 0x45, 0x4c, 0x46, 0, 0xff, 0x2e, 0x2e]),
		code: 'identity.token_malformed',
		reason:
			/^locked out: .*read token \S+\/istio-token: it is not a JSON Web Token \(three base64url parts separated by dots\)$/,
	},
	{
		title: 'an expired token',
		token: world => world.token({expired: true}),
		code: 'identity.token_expired',
		reason: /^locked out: .*read token \S+\/istio-token: expired at \S+, it is .*system:serviceaccount:faults:vm-sa/,
	},
];

for (const {title, token, code, reason} of unusable) {
	test(`faults › token › ${title} is told once and waited for, and the agent joins by itself with a new one`, async t => {
		const {world} = t.context;
		const bundle = await world.bundle();
		const path = join(bundle, 'istio-token');
		const content = token(world);
		await (content === undefined ? rm(path) : writeFile(path, content));
		const workload = await world.workload({bundle});
		workload.start();

		const gate = await untilClosed(workload, 'identity', reason);
		t.regex(gate.hint!, /make a new token .*onramp join BUNDLE/);
		// The stream waits for the same thing and says so, rather than that it was refused.
		const {hint} = await untilClosed(workload, 'registration', /no certificate to show the control plane.*istio-token/);
		t.is(hint, gate.hint);
		// Looked at again each second, and told once.
		await workload.until('looked at again', ({uptimeS}) => uptimeS >= 2);
		t.is(complaints(workload).length, 1, complaints(workload).join('\n'));
		t.regex(complaints(workload)[0]!, new RegExp(`error identity: locked out.*code=${code} hint=`));
		t.deepEqual(await listFiles(workload.stateDir), emptyState);
		t.is(world.sandbox.counts.streamsOpened, 0, 'nothing is asked that can only be refused');

		await writeFile(path, world.token());
		const broughtMs = performance.now();
		await workload.untilReady();
		t.true(performance.now() - broughtMs < 10_000);
		t.is(world.sandbox.counts.issuedByToken, 1);
		t.deepEqual(await listKept(workload.stateDir), joinedState);
	});
}

test('faults › token › one for another audience is refused with both audiences named, and a right one is used at once', async t => {
	const {world} = t.context;
	const bundle = await world.bundle();
	await writeFile(join(bundle, 'istio-token'), world.token({audience: 'vault'}));
	const workload = await world.workload({bundle});
	workload.start();

	const gate = await untilClosed(workload, 'identity', /audience is "vault", expected "istio-ca"/);
	t.regex(
		gate.reason,
		/^no certificate yet: request certificate at \S+: .*UNAUTHENTICATED: request authenticate failure\)$/,
	);
	t.regex(gate.hint!, /istioctl x workload entry configure .*onramp join BUNDLE/);
	await untilClosed(workload, 'registration', /audience is "vault", expected "istio-ca"/);
	t.is(complaints(workload).filter(line => line.includes('relay:')).length, 1);
	t.deepEqual(await listFiles(workload.stateDir), emptyState);

	await writeFile(join(bundle, 'istio-token'), world.token());
	await workload.untilReady();
	t.deepEqual(await listKept(workload.stateDir), joinedState);
});

test('faults › token › one of another service account is refused with both accounts named', async t => {
	const {world} = t.context;
	const bundle = await world.bundle();
	await writeFile(join(bundle, 'istio-token'), world.token({serviceAccount: 'other'}));
	const workload = await world.workload({bundle});
	workload.start();

	const gate = await untilClosed(workload, 'registration', /our identity is not faults\/vm-sa/);
	t.regex(gate.reason, /system:serviceaccount:faults:other.*PERMISSION_DENIED/);
	t.regex(gate.hint!, /the token must be for service account vm-sa in faults: istioctl x workload entry configure/);
	const refusals = complaints(workload).filter(line => line.includes('control_plane.permission_denied'));
	t.is(refusals.length, 1, refusals.join('\n'));
	t.deepEqual(world.sandbox.workloadEntries(), []);
	// The certificate that such a token buys is nobody's here: not served, not kept.
	const {hint} = await untilClosed(workload, 'identity', /it names \S+\/sa\/other, this workload is \S+\/sa\/vm-sa/);
	t.regex(hint!, /token is that of another service account.*onramp join BUNDLE/);
	t.deepEqual(await listFiles(workload.stateDir), emptyState);

	await writeFile(join(bundle, 'istio-token'), world.token());
	const {parts} = await workload.untilReady();
	t.is((parts['identity'] as {spiffeId: string}).spiffeId, 'spiffe://cluster.local/ns/faults/sa/vm-sa');
	t.deepEqual(await listKept(workload.stateDir), joinedState);
});
