import {execFileSync} from 'node:child_process';
import {mkdtemp, rm, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {inspect} from 'node:util';
import test, {type ExecutionContext} from 'ava';
import {AgentError} from '../../../src/errors.ts';
import {readBootstrapToken} from '../../../src/identity/index.ts';
import {renderToken} from './test-ca.ts';

const now = new Date('2030-01-01T00:00:00Z');
const exp = now.getTime() / 1000 + 3600;
const expectation = {audience: 'istio-ca', now};

async function pathIn(t: ExecutionContext): Promise<string> {
	const dir = await mkdtemp(join(tmpdir(), 'onramp-token-'));
	t.teardown(() => rm(dir, {recursive: true, force: true}));
	return join(dir, 'istio-token');
}

test('token › is read with its claims, white space trimmed', async t => {
	const path = await pathIn(t);
	const text = renderToken({aud: ['istio-ca', 'other'], sub: 'system:serviceaccount:bar:vm', exp});
	await writeFile(path, `\n  ${text}\r\n`);
	const {token, expiresAt, audiences, subject, problems} = await readBootstrapToken(path, expectation);
	t.is(token.reveal(), text);
	t.deepEqual(expiresAt, new Date(exp * 1000));
	t.deepEqual(audiences, ['istio-ca', 'other']);
	t.is(subject, 'system:serviceaccount:bar:vm');
	t.deepEqual(problems, []);
});

test('token › is read anew each time', async t => {
	const path = await pathIn(t);
	await writeFile(path, renderToken({aud: 'istio-ca', exp, n: 1}));
	const first = await readBootstrapToken(path, expectation);
	await writeFile(path, renderToken({aud: 'istio-ca', exp, n: 2}));
	t.not((await readBootstrapToken(path, expectation)).token.reveal(), first.token.reveal());
});

test('token › without exp has no expiry', async t => {
	const path = await pathIn(t);
	await writeFile(path, renderToken({aud: 'istio-ca'}));
	t.is((await readBootstrapToken(path, expectation)).expiresAt, undefined);
});

test('token › for another audience is handed out with the doubt', async t => {
	const path = await pathIn(t);
	await writeFile(path, renderToken({aud: ['a', 'b'], exp}));
	const {problems} = await readBootstrapToken(path, expectation);
	t.is(problems[0]?.code, 'identity.token_audience');
	t.regex(problems[0]!.message, /audience is "a", "b", expected "istio-ca"/);
});

const secretPart = 'c2VjcmV0LXBhcnQ';
const refused: [string, string | Buffer, AgentError['code'], RegExp][] = [
	['an empty file', '', 'identity.token_empty', /is empty/],
	['white space only', ' \n\t', 'identity.token_empty', /is empty/],
	[
		'an expired token',
		renderToken({aud: 'istio-ca', sub: 'me', exp: exp - 3600}),
		'identity.token_expired',
		/expired at 2030-01-01T00:00:00.000Z, it is .*subject "me"/,
	],
	['plain text', `hello ${secretPart}`, 'identity.token_malformed', /not a JSON Web Token/],
	['two parts', `${secretPart}.${secretPart}`, 'identity.token_malformed', /not a JSON Web Token/],
	['a payload that is not JSON', `e30.${secretPart}.${secretPart}`, 'identity.token_malformed', /payload is not JSON/],
	['a payload that is a list', `e30.W10.${secretPart}`, 'identity.token_malformed', /not a JSON object/],
	['an exp that is text', renderToken({exp: 'soon'}), 'identity.token_malformed', /"exp"/],
	['an exp out of range', renderToken({exp: 1e300}), 'identity.token_malformed', /"exp"/],
	['binary', Buffer.from([0, 1, 2, 255, 254, 46, 46]), 'identity.token_malformed', /not a JSON Web Token/],
	['a header injection', `e30.e30.${secretPart}\r\nx-evil: 1`, 'identity.token_malformed', /not a JSON Web Token/],
	['a file of 65 KiB', 'a'.repeat(65 * 1024), 'identity.token_malformed', /larger than 65536 bytes/],
];
for (const [what, content, code, message] of refused) {
	test(`token › ${what} is refused as ${code}, without being quoted`, async t => {
		const path = await pathIn(t);
		await writeFile(path, content);
		const error = (await t.throwsAsync(readBootstrapToken(path, expectation), {
			instanceOf: AgentError,
			message,
		})) as AgentError;
		t.is(error.code, code);
		t.true(error.message.includes(path));
		t.regex(error.hint!, /istioctl x workload entry configure.*onramp join BUNDLE/);
		t.notRegex(inspect(error), new RegExp(secretPart));
		t.notRegex(inspect(error), /secret-part/);
	});
}

test('token › an absent file says so and how to bring one', async t => {
	const error = (await t.throwsAsync(readBootstrapToken(await pathIn(t), expectation))) as AgentError;
	t.is(error.code, 'identity.token_missing');
	t.regex(error.message, /no such file/);
	t.regex(error.hint!, /onramp join BUNDLE/);
});

test('token › a FIFO or a directory in its place does not block', async t => {
	const path = await pathIn(t);
	execFileSync('mkfifo', [path]);
	await t.throwsAsync(readBootstrapToken(path, expectation), {message: /not a regular file/});
	await t.throwsAsync(readBootstrapToken(tmpdir(), expectation), {message: /not a regular file/});
});
