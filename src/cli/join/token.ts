import type {Config, Problem} from '../../config/index.ts';
import {findTokenFault} from '../../config/index.ts';

/** What a bootstrap token says of itself. The signature is the control plane's to check. */
export interface TokenClaims {
	readonly expiresAt: Date | undefined;
	readonly audiences: readonly string[];
	/** `system:serviceaccount:NAMESPACE:NAME` for tokens made by Kubernetes. */
	readonly subject: string | undefined;
}

const newToken = 'make a new bundle with "istioctl x workload entry configure"';

/**
 * Looks at a token before anything is asked of anybody. Nothing it says quotes the token.
 * @param place - where it was read
 */
export function examineToken(
	text: string,
	place: string,
	{workload, controlPlane}: Pick<Config, 'workload' | 'controlPlane'>,
	now: Date,
): {readonly claims: TokenClaims | undefined; readonly problems: readonly Problem[]} {
	const problem = (severity: Problem['severity'], message: string, remedy: string): Problem => ({
		severity,
		place,
		message,
		remedy,
	});
	if (text.trim() === '') return {claims: undefined, problems: [problem('error', 'the token is empty', newToken)]};
	const fault = findTokenFault(text);
	if (fault) return {claims: undefined, problems: [problem('error', `the token ${fault}`, newToken)]};
	const claims = readClaims(text);
	const {expiresAt, audiences, subject} = claims;
	const problems: Problem[] = [];
	if (expiresAt && expiresAt <= now) {
		const times = `at ${expiresAt.toISOString()}, and here it is ${now.toISOString()}`;
		problems.push(problem('error', `the token expired ${times}`, `${newToken}; if the clock is wrong, set it`));
	}
	const wanted = `system:serviceaccount:${workload.namespace}:${workload.serviceAccount}`;
	if (subject !== undefined && workload.namespace !== '' && subject !== wanted) {
		const remedy = `${newToken} for the right WorkloadGroup`;
		problems.push(problem('error', `the token is that of "${subject}", and this workload is "${wanted}"`, remedy));
	}
	if (!audiences.includes(controlPlane.tokenAudience)) {
		const seen = audiences.length === 0 ? 'none' : audiences.join(', ');
		const message = `the audience of the token is ${seen}, expected is ${controlPlane.tokenAudience}`;
		problems.push(problem('warning', message, 'istiod may be set to accept it; if it refuses, this is why'));
	}
	return {claims, problems};
}

/** Of a token that {@link findTokenFault} has found to be one. */
function readClaims(text: string): TokenClaims {
	const payload = JSON.parse(Buffer.from(text.trim().split('.')[1]!, 'base64url').toString('utf8')) as {
		readonly exp?: unknown;
		readonly aud?: unknown;
		readonly sub?: unknown;
	};
	const {exp, aud, sub} = payload;
	return {
		expiresAt: typeof exp === 'number' && Math.abs(exp) < 8e12 ? new Date(exp * 1000) : undefined,
		audiences: [aud].flat().filter(each => typeof each === 'string'),
		subject: typeof sub === 'string' ? sub : undefined,
	};
}
