import test from 'ava';
import {startSandbox} from '../../../src/sandbox/index.ts';
import {at, makeControlPlane} from './world.ts';

const stopped = new Error('stopped');

test('control plane › given up while the address is looked up, it ends with the reason and opens no connection', async t => {
	const sandbox = await startSandbox();
	t.teardown(() => sandbox.stop());
	let answer = (_addresses: string[]) => {};
	const isAsked = Promise.withResolvers<void>();
	const controlPlane = await makeControlPlane(t, {
		endpoints: [at(sandbox.port, 'istiod.istio-system.svc')],
		rootPem: sandbox.rootPem(),
		token: sandbox.issueToken({namespace: 'bar', serviceAccount: 'vm'}),
		deps: {
			lookup: () =>
				new Promise(resolve => {
					answer = resolve;
					isAsked.resolve();
				}),
		},
	});
	const giving = new AbortController();
	const opened = controlPlane.openAdsStream('delta', giving.signal);
	await isAsked.promise;
	giving.abort(stopped);
	answer(['127.0.0.1']);
	t.is(await t.throwsAsync(opened), stopped);
	t.is(sandbox.counts.streamsOpened, 0);
});

test('control plane › given up while a connection comes up, it ends with the reason', async t => {
	const sandbox = await startSandbox();
	t.teardown(() => sandbox.stop());
	sandbox.faults.stopAnswering();
	const controlPlane = await makeControlPlane(t, {
		endpoints: [at(sandbox.port)],
		rootPem: sandbox.rootPem(),
		token: sandbox.issueToken({namespace: 'bar', serviceAccount: 'vm'}),
	});
	const request = {csrPem: '', lifetimeMs: 0, certSigner: '', auth: 'any'} as const;
	const giving = new AbortController();
	const asked = controlPlane.requestCertificate(request, giving.signal);
	setImmediate(() => giving.abort(stopped));
	t.is(await t.throwsAsync(asked), stopped);
	t.is(await t.throwsAsync(controlPlane.requestCertificate(request, giving.signal)), stopped, 'nor is it begun');
});
