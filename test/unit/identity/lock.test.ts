import {spawn} from 'node:child_process';
import {once} from 'node:events';
import {mkdtemp, readdir, readFile, rm, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import test, {type ExecutionContext} from 'ava';
import {AgentError} from '../../../src/errors.ts';
import {acquireLock} from '../../../src/lifecycle/lock.ts';

const module = new URL('../../../src/lifecycle/lock.ts', import.meta.url).href;

async function lockPath(t: ExecutionContext): Promise<string> {
	const dir = await mkdtemp(join(tmpdir(), 'onramp-lock-'));
	t.teardown(() => rm(dir, {recursive: true, force: true}));
	return join(dir, 'lock');
}

/** Another process that tries for the lock, prints `held` or the error's code, and stays until killed. */
function contender(t: ExecutionContext, path: string) {
	const script = `
		const {acquireLock} = await import(${JSON.stringify(module)});
		try { await acquireLock(${JSON.stringify(path)}); console.log('held'); }
		catch (error) { console.log(error.code); }
		setInterval(() => {}, 1000);
	`;
	const child = spawn(process.execPath, ['--input-type=module', '-e', script], {stdio: ['ignore', 'pipe', 'inherit']});
	t.teardown(() => child.kill('SIGKILL'));
	const answer = once(child.stdout, 'data').then(([data]) => String(data).trim());
	const kill = async () => {
		child.kill('SIGKILL');
		await once(child, 'exit');
	};
	return {pid: child.pid!, answer, kill};
}

test('lock › the second is refused, with the pid of the first, until it is released', async t => {
	const path = await lockPath(t);
	const lock = await acquireLock(path);
	const error = (await t.throwsAsync(acquireLock(path), {instanceOf: AgentError})) as AgentError;
	t.is(error.code, 'identity.state_locked');
	t.is(error.fields['pid'], process.pid);
	t.regex(error.hint!, new RegExp(`ps -fp ${process.pid}`));
	await lock.release();
	await lock.release();
	await t.notThrowsAsync(acquireLock(path));
});

test('lock › SIGKILL of the holder frees it', async t => {
	const path = await lockPath(t);
	const first = contender(t, path);
	t.is(await first.answer, 'held');
	const error = (await t.throwsAsync(acquireLock(path))) as AgentError;
	t.is(error.fields['pid'], first.pid);
	await first.kill();
	const lock = await acquireLock(path);
	t.is((await readdir(join(path, '..'))).length, 1, 'nothing is left of the dead one');
	await lock.release();
});

test('lock › of many who find it stale at once, one gets it', async t => {
	const path = await lockPath(t);
	const first = contender(t, path);
	await first.answer;
	await first.kill();
	const others = Array.from({length: 6}, () => contender(t, path));
	const answers = await Promise.all(others.map(({answer}) => answer));
	t.deepEqual(answers.sort(), ['held', ...Array(5).fill('identity.state_locked')]);
});

test('lock › of many in one process that find it stale at once, one gets it', async t => {
	for (let round = 0; round < 20; round++) {
		const path = await lockPath(t);
		await (await acquireLock(path)).release();
		const results = await Promise.allSettled(Array.from({length: 8}, () => acquireLock(path)));
		t.is(results.filter(({status}) => status === 'fulfilled').length, 1);
	}
});

for (const [what, change] of [
	['of another boot', {bootId: 'another'}],
	['whose pid now is another process', {startTime: '1'}],
] as const) {
	test(`lock › a holder ${what} is taken for dead`, async t => {
		const path = await lockPath(t);
		await acquireLock(path);
		const holder = JSON.parse(await readFile(`${path}.1`, 'utf8')) as object;
		await writeFile(`${path}.1`, JSON.stringify({...holder, ...change}));
		await t.notThrowsAsync(acquireLock(path));
	});
}

for (const content of ['', 'null', '{"pid":"1"}', '\0\0\0']) {
	test(`lock › a lock file holding ${JSON.stringify(content)} is nobody's`, async t => {
		const path = await lockPath(t);
		await writeFile(`${path}.7`, content);
		await t.notThrowsAsync(acquireLock(path));
		t.deepEqual(await readdir(join(path, '..')), ['lock.8']);
	});
}
