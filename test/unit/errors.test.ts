import {readFile} from 'node:fs/promises';
import test from 'ava';
import {AgentError, exitCodeOf, reasonOf, systemCode} from '../../src/errors.ts';

test('errors › a system code is that of a system call, never one of ours', async t => {
	const missing: unknown = await readFile('/nonexistent/file').catch((error: unknown) => error);
	t.is(systemCode(missing), 'ENOENT');
	t.is(systemCode(new AgentError('internal', 'read it', {cause: missing})), undefined);
	t.is(systemCode(Object.assign(new Error('grpc'), {code: 14})), undefined);
	t.is(systemCode({code: 'ENOENT'}), undefined);
	t.is(systemCode('ENOENT'), undefined);
});

test('errors › a reason has the cause once', t => {
	const cause = new Error('disk full');
	t.is(reasonOf(new Error('write it', {cause})), 'write it: disk full');
	t.is(reasonOf(new Error('write it: disk full', {cause})), 'write it: disk full');
	t.is(reasonOf('text'), 'text');
});

test('errors › the exit code says whether a restart can help', t => {
	t.is(exitCodeOf(new AgentError('config.invalid', '')), 78);
	t.is(exitCodeOf(new AgentError('proxy.version_unsupported', '')), 78);
	// The agent waits for a better root certificate.
	t.is(exitCodeOf(new AgentError('control_plane.root_unusable', '')), 1);
	t.is(exitCodeOf(new Error('bug')), 1);
});
