import {existsSync, readFileSync} from 'node:fs';
import {chmod, mkdtemp, rm, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {inspect} from 'node:util';
import test, {type ExecutionContext} from 'ava';
import type {AgentError} from '../../../src/errors.ts';
import {createTokenSource} from '../../../src/identity/index.ts';
import {FakeClock} from '../../support/fake-clock.ts';
import {renderToken} from './test-ca.ts';

const now = new Date('2030-01-01T00:00:00Z');
const exp = now.getTime() / 1000 + 3600;
const token = renderToken({aud: 'istio-ca', sub: 'system:serviceaccount:bar:vm', exp});

async function directoryIn(t: ExecutionContext): Promise<string> {
	const directory = await mkdtemp(join(tmpdir(), 'onramp-token-'));
	t.teardown(() => rm(directory, {recursive: true, force: true}));
	return directory;
}

/** A source that runs a shell script. */
async function sourceOf(t: ExecutionContext, script: string, ...args: string[]) {
	const directory = await directoryIn(t);
	const program = join(directory, 'give-token');
	await writeFile(program, `#!/bin/sh\ncd '${directory}'\n${script}\n`, {mode: 0o755});
	const clock = new FakeClock(now);
	const abort = new AbortController();
	const deps = {audience: 'istio-ca', clock, signal: abort.signal};
	const source = createTokenSource({tokenPath: '/nonexistent', tokenProgram: [program, ...args]}, deps);
	return {source, directory, program, clock, abort};
}

const failureOf = async (t: ExecutionContext, read: Promise<unknown>): Promise<AgentError> =>
	(await t.throwsAsync(read)) as AgentError;

test('token program › its output is the token, with the claims that a file would have', async t => {
	const {source} = await sourceOf(t, `echo '${token}'`);
	const {token: secret, subject, expiresAt} = await source.read();
	t.is(secret.reveal(), token);
	t.is(subject, 'system:serviceaccount:bar:vm');
	t.deepEqual(expiresAt, new Date(exp * 1000));
});

test('token program › gets its arguments as they are, and nothing of what the agent has in its environment', async t => {
	process.env['ONRAMP_TEST_SECRET'] = 'x';
	t.teardown(() => delete process.env['ONRAMP_TEST_SECRET']);
	const {source, directory} = await sourceOf(
		t,
		`printf '%s\\n' "$@" >args; env >env; echo '${token}'`,
		'a b',
		'$HOME;id',
	);
	await source.read();
	t.is(readFileSync(join(directory, 'args'), 'utf8'), 'a b\n$HOME;id\n');
	t.false(readFileSync(join(directory, 'env'), 'utf8').includes('ONRAMP_TEST_SECRET'));
});

test('token program › is run once for all who ask at the same time or shortly after, and again later', async t => {
	const {source, directory, clock} = await sourceOf(t, `echo run >>runs; echo '${token}'`);
	const runs = () => readFileSync(join(directory, 'runs'), 'utf8').split('\n').length - 1;
	await Promise.all([source.read(), source.read()]);
	await source.read();
	t.is(runs(), 1);
	await clock.advance(6000);
	await source.read();
	t.is(runs(), 2);
});

test('token program › one that fails is left alone for 10 s, however often it is asked', async t => {
	const {source, directory, clock} = await sourceOf(t, 'echo run >>runs; exit 1');
	const runs = () => readFileSync(join(directory, 'runs'), 'utf8').split('\n').length - 1;
	for (let second = 0; second < 9; second++) {
		await t.throwsAsync(source.read());
		await clock.advance(1000);
	}
	t.is(runs(), 1);
	await clock.advance(2000);
	await t.throwsAsync(source.read());
	t.is(runs(), 2);
});

const ends: [string, string, RegExp, RegExp][] = [
	[
		'what it said',
		'echo "no route to the vault" >&2; exit 3',
		/exit code 3, no route to the vault$/,
		/run it as the user/,
	],
	['one that has none now', 'exit 75', /it has none at the moment, exit code 75$/, /asked again/],
	['one that may not', 'echo denied >&2; exit 77', /not allowed to give one, exit code 77, denied$/, /right/],
	['one that is not set up', 'exit 78', /it is not set up, exit code 78$/, /set it up/],
	['a signal', 'kill -9 $$', /ended by SIGKILL$/, /run it/],
	['output without end', 'exec yes', /wrote more than 65536 bytes|ended by/, /./],
];
for (const [what, script, message, hint] of ends)
	test(`token program › its end is told: ${what}`, async t => {
		const {source, program} = await sourceOf(t, what === 'output without end' ? 'yes | head -c 1000000' : script);
		const error = await failureOf(t, source.read());
		t.is(error.code, 'identity.token_program');
		t.true(error.message.startsWith(`get a token from ${program}: `), error.message);
		t.regex(error.message, message);
		t.regex(error.hint ?? '', hint);
	});

test('token program › a token that it writes beside the point is in no message', async t => {
	for (const script of [`echo '${token}' >&2; exit 1`, `echo '${token}'; exit 1`, `echo 'x${token}' | head -c 60`]) {
		const {source} = await sourceOf(t, script);
		const error = await failureOf(t, source.read());
		t.false(inspect(error, {depth: 9}).includes(token.slice(0, 40)), script);
	}
});

test('token program › what is not a token is refused as from a file', async t => {
	for (const [script, code] of [
		['true', 'identity.token_empty'],
		['echo hello', 'identity.token_malformed'],
		[`echo '${renderToken({aud: 'istio-ca', exp: exp - 7200})}'`, 'identity.token_expired'],
	] as const) {
		const {source, program} = await sourceOf(t, script);
		const error = await failureOf(t, source.read());
		t.is(error.code, code);
		t.true(error.message.includes(program));
	}
});

test('token program › one that is not there, or not to be executed, is told as such', async t => {
	const {source, program} = await sourceOf(t, 'true');
	await rm(program);
	t.regex((await failureOf(t, source.read())).message, /no such file$/);
	const other = await sourceOf(t, 'true');
	await chmod(other.program, 0o644);
	t.regex((await failureOf(t, other.source.read())).message, /EACCES/);
});

test('token program › is killed with its children when the agent ends', async t => {
	const {source, directory, abort} = await sourceOf(t, 'sleep 600 & echo $! >child; trap "" TERM; wait');
	const read = source.read();
	const deadlineMs = Date.now() + 30_000;
	while (!existsSync(join(directory, 'child')) || readFileSync(join(directory, 'child'), 'utf8') === '') {
		t.true(Date.now() < deadlineMs);
		await new Promise(resolve => setTimeout(resolve, 5));
	}
	abort.abort();
	await t.throwsAsync(read);
	const child = readFileSync(join(directory, 'child'), 'utf8').trim();
	while (isRunning(child)) {
		t.true(Date.now() < deadlineMs, 'its child is still there');
		await new Promise(resolve => setTimeout(resolve, 5));
	}
});

test('token credential › counts before the file while it can be used, and the file when it has expired', async t => {
	const directory = await directoryIn(t);
	const [credentialPath, tokenPath] = [join(directory, 'credential'), join(directory, 'token')];
	const other = renderToken({aud: 'istio-ca', exp: exp + 1});
	await writeFile(credentialPath, token);
	await writeFile(tokenPath, other);
	const clock = new FakeClock(now);
	const deps = {audience: 'istio-ca', clock, signal: new AbortController().signal};
	const source = createTokenSource({tokenPath, credentialPath}, deps);
	t.is((await source.read()).token.reveal(), token);
	await clock.advance(3_600_000);
	t.is((await source.read()).token.reveal(), other);

	const before = await source.mark();
	await rm(tokenPath);
	t.not(await source.mark(), before);
	t.is((await failureOf(t, source.read())).code, 'identity.token_expired', 'that one says more than an absent one');
});

/** A child that nobody waits for stays as a zombie until its new parent looks. */
function isRunning(pid: string): boolean {
	try {
		return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
	} catch {
		return false;
	}
}
