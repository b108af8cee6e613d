import {X509Certificate} from 'node:crypto';
import {chmod, chown, readdir, readFile, rm, stat, writeFile} from 'node:fs/promises';
import {join} from 'node:path';
import test from 'ava';
import {AgentError} from '../../../src/errors.ts';
import type {WorkloadCertificate} from '../../../src/identity/index.ts';
import {createCa} from './test-ca.ts';
import {createWorld, eventually, hour, joined, makeDir, minute, refusal, second, spiffeId} from './world.ts';

const gateOf = (world: Awaited<ReturnType<typeof createWorld>>) => world.readiness.states()[0]!;

test('identity › trades the token for a certificate, serves it and opens the gate', async t => {
	const world = await createWorld(t);
	await world.putToken();
	const identity = await world.start();
	const seen: WorkloadCertificate[] = [];
	identity.onChange(certificate => seen.push(certificate));
	const certificate = await joined(world, identity);
	t.is(certificate.spiffeId, spiffeId);
	t.is(certificate.origin, 'control-plane');
	t.is(certificate.trustBundlePem.trim(), world.ca.pem.trim());
	t.is(new X509Certificate(certificate.chainPem).serialNumber, certificate.serial);
	t.deepEqual(seen, [certificate]);
	t.true(gateOf(world).isOpen);
	const status = identity.status();
	t.is(status.state, 'serving');
	t.is(status.generation, 1);
	t.is(status.rootCount, 1);
	t.is(status.attempts, 0);
	t.regex(world.metrics.render(), /onramp_certificate_rotations_total\{result="success"\} 1/);
	t.regex(
		world.metrics.render(),
		new RegExp(`certificate_expiry_timestamp_seconds ${certificate.notAfter.getTime() / 1000}`),
	);
});

test('identity › never prints the private key', async t => {
	const world = await createWorld(t);
	await world.putToken();
	const certificate = await joined(world, await world.start());
	t.notRegex(JSON.stringify(certificate), /PRIVATE KEY/);
	t.regex(certificate.keyPem.reveal(), /^-----BEGIN PRIVATE KEY-----/);
});

test('identity › serves the stored pair at once after a restart, with no token and no control plane', async t => {
	const world = await createWorld(t);
	await world.putToken();
	const first = await world.start();
	const before = await joined(world, first);
	await first.stop();
	await rm(join(world.dir, 'token'));
	world.answer = refusal('control_plane.unreachable');
	const identity = await world.start();
	const after = identity.current();
	t.is(after?.serial, before.serial);
	t.is(after?.origin, 'disk');
	t.is(after?.generation, 1);
	t.deepEqual(after?.receivedAt, before.receivedAt);
	t.true(gateOf(world).isOpen);
});

test('identity › rotates after half the life, with a new key, and keeps the old pair until then', async t => {
	const world = await createWorld(t);
	await world.putToken(30 * 24 * hour);
	const identity = await world.start({trialDelayMs: 365 * 24 * hour});
	const first = await joined(world, identity);
	t.deepEqual(identity.status().nextRotationAt, new Date(first.receivedAt.getTime() + 12 * hour));
	await world.clock.advance(11.9 * hour);
	t.is(identity.current(), first);
	await world.clock.advance(0.1 * hour);
	const second = await world.until(() => identity.current() !== first && identity.current());
	t.is(world.requests.length, 2);
	t.not(second.keyPem.reveal(), first.keyPem.reveal());
	t.is(second.generation, 2);
});

test('identity › a failing rotation keeps the old pair, says why, and tries again with capped backoff for ever', async t => {
	const world = await createWorld(t);
	await world.putToken(30 * 24 * hour);
	const identity = await world.start({trialDelayMs: 365 * 24 * hour});
	const first = await joined(world, identity);
	world.answer = refusal('control_plane.unreachable');
	await world.clock.advance(12 * hour);
	await world.until(() => identity.status().attempts > 0);
	t.is(identity.status().state, 'serving-stale');
	t.is(identity.status().lastError?.code, 'control_plane.unreachable');
	t.is(identity.status().lastError?.hint, 'do something');
	t.is(identity.current(), first);
	t.true(gateOf(world).isOpen, 'a valid certificate is served, however badly rotation goes');
	for (let i = 0; i < 20; i++) {
		const {attempts} = identity.status();
		await world.clock.advance(30 * second);
		await world.until(() => identity.status().attempts > attempts);
	}
	const waitMs = identity.status().nextRotationAt!.getTime() - world.clock.now().getTime();
	t.true(waitMs <= minute, 'the wait is capped');
	world.answer = world.sign;
	await world.until(() => identity.current() !== first);
	t.is(identity.status().state, 'serving');
	t.is(identity.status().lastError, undefined);
	t.is(identity.status().attempts, 0);
});

test('identity › never serves a certificate that the wall clock says has expired, and closes the gate', async t => {
	const world = await createWorld(t, hour);
	await world.putToken(30 * 24 * hour);
	const identity = await world.start({trialDelayMs: 365 * 24 * hour});
	await joined(world, identity);
	world.answer = refusal('control_plane.unreachable');
	world.clock.step(2 * hour);
	t.is(identity.current(), undefined);
	t.is(identity.status().state, 'expired');
	await world.clock.advance(10 * second);
	await world.until(() => identity.status().attempts > 0);
	t.false(gateOf(world).isOpen);
	t.regex(gateOf(world).reason, /certificate expired at .*control_plane.unreachable/);
	world.answer = world.sign;
	await world.until(() => identity.current());
	t.true(gateOf(world).isOpen);
});

test('identity › what is trusted outlives the certificate, also over a restart', async t => {
	const world = await createWorld(t, hour);
	await world.putToken();
	const identity = await world.start();
	await joined(world, identity);
	world.answer = refusal('control_plane.unreachable');
	world.clock.step(2 * hour);
	t.is(identity.current(), undefined);
	t.is(identity.trustBundlePem(), world.ca.pem);
	await identity.stop();
	const next = await world.start();
	t.is(next.current(), undefined);
	t.is(next.status().state, 'expired');
	t.is(next.trustBundlePem(), world.ca.pem);
});

test('identity › booted with a wrong clock, it serves the stored pair once the clock is right', async t => {
	const world = await createWorld(t);
	await world.putToken();
	const first = await world.start();
	const {serial} = await joined(world, first);
	await first.stop();
	world.clock.step(20 * 24 * hour);
	world.answer = refusal('control_plane.unauthenticated');
	const identity = await world.start();
	const told: string[] = [];
	identity.onChange(certificate => told.push(certificate.serial));
	await world.until(() => identity.status().state === 'locked-out');
	t.is(identity.current(), undefined);
	world.clock.step(-20 * 24 * hour);
	await world.until(() => told.length > 0);
	t.deepEqual(told, [serial]);
	t.is(identity.current()?.serial, serial);
	await world.until(() => identity.status().state === 'serving');
	t.true(gateOf(world).isOpen);
});

test('identity › rotates at once when a suspended machine wakes past the time', async t => {
	const world = await createWorld(t);
	await world.putToken(30 * 24 * hour);
	const identity = await world.start({trialDelayMs: 365 * 24 * hour});
	const first = await joined(world, identity);
	world.clock.step(13 * hour); // suspend: the wall clock goes on, waits stand still
	await world.clock.advance(10 * second);
	t.true(await world.until(() => identity.current() !== first));
});

test('identity › a wall clock set back does not delay the rotation, and is told', async t => {
	const world = await createWorld(t);
	await world.putToken(30 * 24 * hour);
	const identity = await world.start({trialDelayMs: 365 * 24 * hour});
	const first = await joined(world, identity);
	world.clock.step(-365 * 24 * hour);
	t.is(identity.current(), first, 'the peers decide by their own clocks');
	t.true(identity.status().warnings.some(warning => warning.includes('but the clock shows 2029')));
	await world.clock.advance(12 * hour);
	t.true(await world.until(() => identity.current() !== first));
});

test('identity › rides out: rotates early enough that the wanted life is always left', async t => {
	const world = await createWorld(t);
	await world.putToken();
	const identity = await world.start({rideOutMs: 20 * hour, rotateJitter: 0, trialDelayMs: 365 * 24 * hour});
	const first = await joined(world, identity);
	t.is(identity.status().nextRotationAt!.getTime(), first.receivedAt.getTime() + 4 * hour);
});

test('identity › locked out: sends nothing, says the command, and uses a new token within a second', async t => {
	const world = await createWorld(t);
	const identity = await world.start();
	await world.until(() => identity.status().state === 'locked-out');
	await world.clock.advance(hour);
	t.is(world.requests.length, 0);
	t.false(gateOf(world).isOpen);
	t.regex(gateOf(world).reason, /locked out: there is no certificate, and read token .*: no such file/);
	t.regex(gateOf(world).hint!, /onramp join BUNDLE/);
	t.is(identity.status().lastError?.code, 'identity.token_missing');
	await t.throwsAsync(identity.rotateNow(), {instanceOf: AgentError, message: /no such file/});
	t.is(world.requests.length, 0);
	await world.putToken();
	await world.clock.advance(second);
	await eventually(() => identity.current() !== undefined);
	t.is(identity.status().state, 'serving');
	t.true(gateOf(world).isOpen);
});

test('identity › locked out: an expired token with an expired certificate says both', async t => {
	const world = await createWorld(t, hour);
	await world.putToken(30 * minute);
	const identity = await world.start({trialDelayMs: 365 * 24 * hour});
	await joined(world, identity);
	world.answer = refusal('control_plane.unreachable');
	await world.clock.advance(2 * hour);
	await world.until(() => identity.status().state === 'locked-out');
	t.regex(gateOf(world).reason, /the certificate expired at 2030-01-01T01.*read token .*expired at 2030-01-01T00:30/);
	const sent = world.requests.length;
	await world.clock.advance(hour);
	t.is(world.requests.length, sent);
});

test('identity › a token that has expired is not needed while the certificate is valid', async t => {
	const world = await createWorld(t);
	await world.putToken(minute);
	const identity = await world.start({trialDelayMs: 365 * 24 * hour});
	const first = await joined(world, identity);
	await world.clock.advance(12 * hour);
	await world.until(() => identity.current() !== first);
	t.is(identity.status().tokenlessRenewal, 'works', 'it has just been shown');
});

test('identity › a replaced token cuts the wait after a refusal short', async t => {
	const world = await createWorld(t);
	await world.putToken();
	world.answer = refusal('control_plane.unauthenticated');
	const identity = await world.start({retryMaxMs: hour}, {random: () => 0.999});
	await world.until(() => identity.status().attempts > 0);
	t.is(identity.status().state, 'awaiting-certificate');
	for (let i = 0; i < 10; i++) {
		const {attempts, nextRotationAt} = identity.status();
		await world.clock.advance(nextRotationAt!.getTime() - world.clock.now().getTime());
		await world.until(() => identity.status().attempts > attempts);
	}
	const leftMs = identity.status().nextRotationAt!.getTime() - world.clock.now().getTime();
	t.true(leftMs > 15 * minute);
	world.answer = world.sign;
	await world.putToken(2 * hour);
	await world.clock.advance(second);
	await eventually(() => identity.current() !== undefined);
	t.pass();
});

test('identity › retryNow cuts the wait after a failure short', async t => {
	const world = await createWorld(t);
	await world.putToken();
	world.answer = refusal('control_plane.unreachable');
	const identity = await world.start({retryMaxMs: hour});
	await world.until(() => identity.status().attempts > 0);
	world.answer = world.sign;
	identity.retryNow();
	await eventually(() => identity.current() !== undefined);
	t.pass();
});

test('identity › rotateNow rotates, and two at once are one request', async t => {
	const world = await createWorld(t);
	await world.putToken();
	const identity = await world.start({trialDelayMs: 365 * 24 * hour});
	const first = await joined(world, identity);
	await Promise.all([identity.rotateNow(), identity.rotateNow()]);
	t.is(world.requests.length, 2);
	t.not(identity.current()?.serial, first.serial);
});

test('identity › a call that is never answered is given up after a minute', async t => {
	const world = await createWorld(t);
	await world.putToken();
	world.answer = () => new Promise(() => {});
	const identity = await world.start();
	await eventually(() => world.requests.length === 1);
	await world.clock.advance(minute);
	await world.until(() => identity.status().attempts === 1);
	t.regex(identity.status().lastError!.message, /no answer within 60 s/);
	world.answer = world.sign;
	await joined(world, identity);
});

test('identity › a trial without the token soon after joining shows that it works, and the new pair is kept', async t => {
	const world = await createWorld(t);
	await world.putToken();
	const identity = await world.start();
	const first = await joined(world, identity);
	t.is(world.requests[0]!.auth, 'any');
	t.is(identity.status().tokenlessRenewal, 'unknown');
	await world.clock.advance(30 * second);
	await world.until(() => identity.status().tokenlessRenewal === 'works');
	t.deepEqual(
		world.requests.map(request => request.auth),
		['any', 'certificate-only'],
	);
	t.not(identity.current()?.serial, first.serial);
	await identity.stop();
	const next = await world.start();
	t.is(next.current()?.generation, 2);
	t.is(next.status().tokenlessRenewal, 'works', 'remembered over a restart');
});

test('identity › a trial that is refused is told and harms nothing', async t => {
	const world = await createWorld(t);
	await world.putToken();
	world.answer = request =>
		request.auth === 'any'
			? world.sign(request, new AbortController().signal)
			: refusal('control_plane.permission_denied')(request, new AbortController().signal);
	const identity = await world.start();
	const first = await joined(world, identity);
	await world.clock.advance(30 * second);
	await world.until(() => identity.status().tokenlessRenewal === 'refused');
	t.regex(identity.status().tokenlessRenewalReason!, /permission_denied/);
	t.is(identity.current(), first);
	t.is(identity.status().state, 'serving');
	t.is(identity.status().attempts, 0);
	await world.clock.advance(6 * hour);
	t.is(world.requests.length, 2, 'a refusal is not asked for again');
});

test('identity › a trial that gets no answer is repeated', async t => {
	const world = await createWorld(t);
	await world.putToken();
	world.answer = request =>
		request.auth === 'any'
			? world.sign(request, new AbortController().signal)
			: refusal('control_plane.unreachable')(request, new AbortController().signal);
	const identity = await world.start();
	await joined(world, identity);
	await world.clock.advance(30 * second);
	await world.until(() => world.requests.length === 2 && identity.status().tokenlessRenewal === 'unknown');
	t.is(identity.status().state, 'serving');
	world.answer = world.sign;
	await world.clock.advance(hour);
	await world.until(() => identity.status().tokenlessRenewal === 'works');
	t.pass();
});

test('identity › an answer that does not fit is refused and the old pair stays', async t => {
	const world = await createWorld(t);
	await world.putToken();
	const identity = await world.start({trialDelayMs: 365 * 24 * hour});
	const first = await joined(world, identity);
	const other = await createCa();
	world.answer = async (request, signal) => [(await world.sign(request, signal))[0]!, other.pem];
	await t.throwsAsync(identity.rotateNow(), {message: /no root of the trust bundle issued/});
	t.is(identity.current(), first);
	t.is(identity.status().lastError?.code, 'identity.issued_invalid');
});

test('identity › a token for another audience is used, with a warning', async t => {
	const world = await createWorld(t);
	await world.putToken(hour, {aud: ['vault']});
	const identity = await world.start();
	await joined(world, identity);
	t.true(identity.status().warnings.some(warning => warning.includes('audience is "vault", expected "istio-ca"')));
});

test('identity › additional roots join the trust bundle, sorted and once, and are told', async t => {
	const world = await createWorld(t);
	await world.putToken();
	const identity = await world.start();
	await joined(world, identity);
	const seen: WorkloadCertificate[] = [];
	identity.onChange(certificate => seen.push(certificate));
	const other = await createCa();
	identity.setAdditionalRoots([`${other.pem}${world.ca.pem}`, 'rubbish']);
	t.is(seen.length, 1);
	t.is(identity.status().rootCount, 2);
	const blocks = identity.current()!.trustBundlePem.match(/-----BEGIN[^-]+-----[^-]+-----END[^-]+-----\n/g)!;
	t.deepEqual(blocks, [...blocks].sort());
	identity.setAdditionalRoots([other.pem]);
	t.is(seen.length, 1, 'the same roots are no change');
	identity.setAdditionalRoots([]);
	t.is(identity.status().rootCount, 1);
});

test('identity › two agents on one state directory: the second is refused and told who is first', async t => {
	const world = await createWorld(t);
	await world.putToken();
	const first = await world.start();
	const error = await t.throwsAsync(world.start(), {instanceOf: AgentError});
	t.is((error as AgentError).code, 'identity.state_locked');
	t.is((error as AgentError).fields['pid'], process.pid);
	await first.stop();
	await t.notThrowsAsync(world.start());
});

test('identity › refuses a state directory that others can write in', async t => {
	const world = await createWorld(t);
	await makeDir(world.config.stateDir, 0o770);
	const error = (await t.throwsAsync(world.start(), {
		message: /other users can write in it \(mode 0770\)/,
	})) as AgentError;
	t.is(error.code, 'identity.state_unusable');
	t.regex(error.hint!, /chmod 0700/);
});

(process.getuid!() === 0 ? test : test.skip)('identity › refuses a state directory of another user', async t => {
	const world = await createWorld(t);
	await makeDir(world.config.stateDir, 0o700);
	await chown(world.config.stateDir, 4711, 4711);
	const error = (await t.throwsAsync(world.start(), {
		message: /owned by uid 4711, the agent runs as uid 0/,
	})) as AgentError;
	t.is(error.code, 'identity.state_unusable');
	t.regex(error.hint!, /chown -R/);
});

test('identity › refuses a state directory below a file', async t => {
	const world = await createWorld(t);
	await writeFile(join(world.dir, 'file'), '');
	const error = (await t.throwsAsync(world.start({stateDir: join(world.dir, 'file/identity')}))) as AgentError;
	t.is(error.code, 'identity.state_unusable');
	t.regex(error.hint!, /is a file/);
});

test('identity › refuses a key type it cannot make', async t => {
	const world = await createWorld(t);
	const error = (await t.throwsAsync(world.start({keyType: 'dsa-512' as never}))) as AgentError;
	t.is(error.code, 'identity.key_unsupported');
});

test('identity › a stored pair that was asked for under another name is left alone', async t => {
	const world = await createWorld(t);
	await world.putToken();
	const first = await world.start();
	await joined(world, first);
	await first.stop();
	const identity = await world.start(
		{},
		{workload: {trustDomain: 'cluster.local', namespace: 'other', serviceAccount: 'vm'}},
	);
	t.is(identity.current(), undefined);
	t.true(
		identity
			.status()
			.warnings.some(warning => warning.includes('was asked for as spiffe://cluster.local/ns/bar/sa/vm')),
	);
});

test('identity › a damaged newest generation is passed over for the one before', async t => {
	const world = await createWorld(t);
	await world.putToken();
	const first = await world.start({trialDelayMs: 365 * 24 * hour});
	const {serial} = await joined(world, first);
	await first.rotateNow();
	await first.stop();
	const keyPath = join(world.config.stateDir, 'generations/000002/key.pem');
	const bytes = await readFile(keyPath);
	bytes[100]! ^= 1;
	await writeFile(keyPath, bytes);
	const identity = await world.start();
	t.is(identity.current()?.serial, serial);
	t.true(identity.status().warnings.some(warning => warning.includes('key.pem does not match its checksum')));
});

test('identity › state on disk is for its owner only', async t => {
	const world = await createWorld(t);
	await world.putToken();
	const identity = await world.start();
	await joined(world, identity);
	await identity.stop();
	const {stateDir} = world.config;
	t.is((await stat(stateDir)).mode & 0o777, 0o700);
	t.is((await stat(join(stateDir, 'current'))).mode & 0o777, 0o700);
	for (const name of await readdir(join(stateDir, 'current'))) {
		t.is((await stat(join(stateDir, 'current', name))).mode & 0o777, 0o600, name);
	}
});

test('identity › a disk that refuses while running costs a warning, and the pair is written when it can be', async t => {
	const world = await createWorld(t);
	await world.putToken();
	const identity = await world.start({trialDelayMs: 365 * 24 * hour});
	const {stateDir} = world.config;
	const generations = join(stateDir, 'generations');
	await writeFile(generations, 'in the way'); // stands for any disk that refuses, whoever runs the test
	const certificate = await joined(world, identity);
	await world.until(() => identity.status().warnings.some(warning => warning.includes('certificate not written')));
	t.is(identity.current(), certificate);
	t.is(identity.status().state, 'serving');
	await rm(generations);
	await world.until(() => identity.status().warnings.length === 0);
	await identity.stop();
	const next = await world.start();
	t.is(next.current()?.serial, certificate.serial);
});

test('identity › writes the pair out for other programs', async t => {
	const world = await createWorld(t);
	await world.putToken();
	const outputDir = join(world.dir, 'certs');
	const identity = await world.start({outputDir, outputKeyMode: 0o640, trialDelayMs: 365 * 24 * hour});
	const certificate = await joined(world, identity);
	await identity.stop();
	t.is(await readFile(join(outputDir, 'cert-chain.pem'), 'utf8'), certificate.chainPem);
	t.is(await readFile(join(outputDir, 'key.pem'), 'utf8'), certificate.keyPem.reveal());
	t.is(await readFile(join(outputDir, 'root-cert.pem'), 'utf8'), certificate.trustBundlePem);
	t.is((await stat(join(outputDir, 'key.pem'))).mode & 0o777, 0o640);
});

test('identity › an output directory that cannot be written costs a warning', async t => {
	const world = await createWorld(t);
	await world.putToken();
	await writeFile(join(world.dir, 'file'), '');
	const identity = await world.start({outputDir: join(world.dir, 'file/certs')});
	await joined(world, identity);
	await world.until(() => identity.status().warnings.some(warning => warning.includes('for other programs')));
	t.is(identity.status().state, 'serving');
});

test('identity › stop ends a call under way, and again is no error', async t => {
	const world = await createWorld(t);
	await world.putToken();
	let aborted = false;
	world.answer = (_, signal) =>
		new Promise((_, reject) => {
			signal.addEventListener('abort', () => {
				aborted = true;
				reject(signal.reason);
			});
		});
	const identity = await world.start();
	await eventually(() => world.requests.length === 1);
	await identity.stop();
	await identity.stop();
	await identity.finished;
	t.true(aborted);
	t.is(world.clock.sleeping, 0, 'nothing is left waiting');
	t.false(gateOf(world).isOpen);
});

test('identity › a token that only its mode hides is said to be unreadable, not absent', async t => {
	if (process.getuid!() === 0) {
		t.pass('root reads everything');
		return;
	}
	const world = await createWorld(t);
	await world.putToken();
	await chmod(join(world.dir, 'token'), 0);
	const identity = await world.start();
	await world.until(() => identity.status().state === 'locked-out');
	t.regex(identity.status().lastError!.hint!, /readable/);
});

test('identity › a state directory that can only be read serves its valid pair, with a warning', async t => {
	const world = await createWorld(t);
	await world.putToken();
	const first = await world.start({trialDelayMs: 365 * 24 * hour});
	const {serial} = await joined(world, first);
	await first.stop();
	// The system refuses the lock, as it does on a full or read-only disk, and whoever runs the test.
	await makeDir(join(world.config.stateDir, 'lock.9'), 0o700);
	const identity = await world.start();
	t.is(identity.current()?.serial, serial);
	t.true(
		identity
			.status()
			.warnings.some(warning => warning.startsWith('new certificates cannot be kept: use state directory')),
	);
});

test('identity › a state directory that can only be read and holds nothing valid is an error', async t => {
	const world = await createWorld(t);
	await world.putToken();
	await makeDir(world.config.stateDir, 0o700);
	await makeDir(join(world.config.stateDir, 'lock.9'), 0o700);
	const error = (await t.throwsAsync(world.start())) as AgentError;
	t.is(error.code, 'identity.state_unusable');
	t.truthy(error.hint);
});
