import {status} from '@grpc/grpc-js';
import test from 'ava';
import {explainRefusal, type Mender, type RefusalContext} from '../../../src/control-plane/refusals.ts';
import {AgentError, type ErrorCode} from '../../../src/errors.ts';

const context: RefusalContext = {
	doing: 'ADS stream',
	endpoint: 'istiod:15012',
	namespace: 'bar',
	serviceAccount: 'vm',
	clusterId: 'Kubernetes',
	group: 'checkout',
	credentials: 'token for system:serviceaccount:bar:vm; no certificate',
};

const refusal = (code: number, details: string) =>
	Object.assign(new Error(`${code} ${status[code]}: ${details}`), {code, details, metadata: undefined});

interface Row {
	readonly code: keyof typeof status;
	/** As istiod words it. */
	readonly details: string;
	readonly to: ErrorCode;
	readonly mender: Mender;
	readonly cause: RegExp;
	readonly hint: RegExp;
}

const rows: readonly Row[] = [
	{
		code: 'FAILED_PRECONDITION',
		details: 'auto-registration WorkloadEntry of vm1.bar failed: cannot find WorkloadGroup bar/checkout',
		to: 'control_plane.group_missing',
		mender: 'mesh operator',
		cause: /^WorkloadGroup bar\/checkout does not exist/,
		hint: /kubectl -n bar get workloadgroup; create checkout/,
	},
	{
		code: 'UNKNOWN',
		details: 'registration of WorkloadEntry service account mismatch: "vm" vs "other"',
		to: 'control_plane.permission_denied',
		mender: 'mesh operator',
		cause: /for another service account than vm/,
		hint: /istioctl x workload entry configure --name checkout --namespace bar/,
	},
	{
		code: 'UNKNOWN',
		details: 'registration of WorkloadEntry namespace mismatch: "foo" vs "bar"',
		to: 'control_plane.permission_denied',
		mender: 'mesh operator',
		cause: /of another namespace than bar/,
		hint: /onramp join BUNDLE/,
	},
	{
		code: 'UNKNOWN',
		details: 'registration of WorkloadEntry requires a verified identity',
		to: 'control_plane.unauthenticated',
		mender: 'vm operator',
		cause: /this connection has none \(token for .*; no certificate\)/,
		hint: /15012/,
	},
	{
		code: 'UNKNOWN',
		details: 'WORKLOAD_ENTRY x must correspond to an existing WorkloadEntry',
		to: 'control_plane.group_missing',
		mender: 'mesh operator',
		cause: /does not exist in bar/,
		hint: /get workloadentry/,
	},
	{
		code: 'UNAUTHENTICATED',
		details: 'authentication failure',
		to: 'control_plane.unauthenticated',
		mender: 'vm operator',
		cause: /none of our credentials \(token for .*\); .* cluster id "Kubernetes"/,
		hint: /istioctl x workload entry configure/,
	},
	{
		code: 'PERMISSION_DENIED',
		details: 'authorization failed',
		to: 'control_plane.permission_denied',
		mender: 'mesh operator',
		cause: /our identity is not bar\/vm/,
		hint: /service account vm in bar/,
	},
	{
		code: 'INVALID_ARGUMENT',
		details: 'requested TTL 9000h is greater than the max allowed TTL 2160h',
		to: 'control_plane.csr_refused',
		mender: 'vm operator',
		cause: /does not accept the certificate request/,
		hint: /identity\.certificate-lifetime/,
	},
	{
		code: 'INVALID_ARGUMENT',
		details: 'failed to unmarshal node metadata',
		to: 'control_plane.node_refused',
		mender: 'vm operator',
		cause: /cannot read our node metadata/,
		hint: /onramp config print/,
	},
	{
		code: 'RESOURCE_EXHAUSTED',
		details: 'request rate limit exceeded',
		to: 'control_plane.overloaded',
		mender: 'time',
		cause: /limits the rate/,
		hint: /nothing to do/,
	},
	{
		code: 'UNIMPLEMENTED',
		details: 'unknown service',
		to: 'control_plane.unsupported',
		mender: 'mesh operator',
		cause: /istiod:15012 does not offer this service/,
		hint: /1\.24 or later/,
	},
	{
		code: 'UNAVAILABLE',
		details: 'server warmup not complete; try again',
		to: 'control_plane.not_ready',
		mender: 'time',
		cause: /still starting/,
		hint: /nothing to do/,
	},
	{
		code: 'UNAVAILABLE',
		details: 'no healthy upstream',
		to: 'control_plane.unreachable',
		mender: 'time',
		cause: /the connection failed/,
		hint: /istiod:15012 can be reached/,
	},
	{
		code: 'DEADLINE_EXCEEDED',
		details: 'deadline exceeded',
		to: 'control_plane.unreachable',
		mender: 'time',
		cause: /no answer in time/,
		hint: /The agent keeps trying/,
	},
	{
		code: 'INTERNAL',
		details: 'Received RST_STREAM with code 0 (Call ended without gRPC status)',
		to: 'control_plane.unreachable',
		mender: 'time',
		cause: /the connection ended/,
		hint: /The agent keeps trying/,
	},
	{
		code: 'INTERNAL',
		details: 'something broke',
		to: 'control_plane.failed',
		mender: 'mesh operator',
		cause: /^INTERNAL: something broke/,
		hint: /own log says more/,
	},
	{
		code: 'UNKNOWN',
		details: 'something else',
		to: 'control_plane.failed',
		mender: 'mesh operator',
		cause: /^UNKNOWN: something else/,
		hint: /own log says more/,
	},
];

for (const {code, details, to, mender, cause, hint} of rows) {
	test(`refusal › ${code}, "${details.slice(0, 50)}", is ${to} and for ${mender} to mend`, t => {
		const original = refusal(status[code] as number, details);
		const error = explainRefusal(original, context);
		t.is(error.code, to);
		const start = 'ADS stream at istiod:15012: ';
		t.is(error.message.slice(0, start.length), start);
		t.regex(error.message.slice(start.length), cause);
		t.true(error.message.includes(`${code}: ${details}`), 'its own words are kept');
		t.regex(error.hint!, hint);
		t.deepEqual(error.fields, {grpcCode: status[code], mender});
		t.is(error.cause, original);
	});
}

test('refusal › without a group the command has a place for its name', t => {
	const error = explainRefusal(refusal(status.UNAUTHENTICATED, 'x'), {...context, group: undefined});
	t.regex(error.hint!, /--name GROUP --namespace bar/);
});

test('refusal › an error that is explained already stays as it is, and one that is none of gRPC is not lost', t => {
	const known = new AgentError('identity.token_missing', 'read token: no such file');
	t.is(explainRefusal(known, context), known);
	const odd = explainRefusal(new TypeError('bug'), context);
	t.is(odd.code, 'control_plane.failed');
	t.regex(odd.message, /^ADS stream at istiod:15012: TypeError: bug$/);
});
